import { cpSync, existsSync, lstatSync, mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { unless } from "../../testing/root.ts";
import { noStrace } from "../../testing/strace.ts";
import { recoverJournal } from "../journal/rebuild.ts";
import { compressLog } from "../log/compress.ts";
import { callsOf, missingIn } from "../testing/trace.ts";
import { finished, sh, testDirectory, testWorker, until } from "../testing/worker.ts";

/*
 * What goes from a disk goes once what stands for it is on the disk: the order of system calls, since no test can cut
 * the power. A write is on the disk when its file has been synced, a name when its directory has.
 */

const files = testDirectory();
const kept = join(files.path, "kept");
let job = "";

beforeAll(async () => {
  mkdirSync(kept);
  const worker = await testWorker({ stateDir: kept });
  job = (await finished(worker, sh("seq 3000; seq 500 >&2"))).id;
  await worker.close();
});
afterAll(() => files[Symbol.dispose]());

const sync = (path: string): RegExp => new RegExp(`^f(data)?sync\\(\\d+<${path}>`);
const write = (path: string): RegExp => new RegExp(`^p?write(64|v)?\\(\\d+<${path}>`);
const rename = (from: string, to: string): RegExp => new RegExp(`^rename(at2?)?\\(.*"${from}".*"${to}"`);
const unlink = (path: string): RegExp => new RegExp(`^unlink(at)?\\(.*"${path}"`);
const JOB = "state/jobs/[^/]+";
const STORED = "state/archive/[^/]+/[^/]+";

/** A file is written under another name, and has its own once all of it is on the disk. */
const placed = (directory: string, made: string, name: string): RegExp[] => [
  write(`${directory}/${made}`),
  sync(`${directory}/${made}`),
  rename(`${directory}/${made}`, `${directory}/${name}`),
  sync(directory),
];

interface Order {
  readonly what: string;
  readonly step: string;
  /** Each is calls that come in this order. */
  readonly orders: readonly (readonly RegExp[])[];
}

const ORDERS: readonly Order[] = [
  {
    what: "a log is compressed: both files, then their names, then the plain ones go",
    step: "compress",
    orders: [
      [...placed(JOB, "output.zst.new", "output.zst"), unlink(`${JOB}/index`), unlink(`${JOB}/output`)],
      [...placed(JOB, "index.zst.new", "index.zst"), unlink(`${JOB}/index`), unlink(`${JOB}/output`)],
      [sync(`${JOB}/index.zst.new`), rename(`${JOB}/output.zst.new`, `${JOB}/output.zst`)],
      [sync(`${JOB}/output.zst.new`), rename(`${JOB}/index.zst.new`, `${JOB}/index.zst`)],
    ],
  },
  {
    what: "a log is archived: directories, files, their names, all of it read again, the journal, then the files here go",
    step: "archive",
    orders: [
      [/^mkdir(at)?\(.*"state\/archive\/[^/"]+"/, sync("state/archive"), write(`${STORED}/.partial-index`)],
      [new RegExp(`^mkdir(at)?\\(.*"${STORED}"`), sync("state/archive/[^/]+"), write(`${STORED}/.partial-index`)],
      ...["index", "output", "job"].map((name) =>
        placed(STORED, `.partial-${name}`, name).concat([
          new RegExp(`^pread64\\(\\d+<${STORED}/${name}>`),
          // SQLite syncs the first bytes of its log in any case.
          write("state/journal.db-wal"),
          sync("state/journal.db-wal"),
          write("state/journal.db-wal"),
          sync("state/journal.db-wal"),
          unlink(`${JOB}/index`),
        ]),
      ),
    ],
  },
  {
    what: "the journal's changes are in its log on the disk before they are in the database, and there before the log goes",
    step: "checkpoint",
    orders: [
      [
        write("state/journal.db-wal"),
        sync("state/journal.db-wal"),
        write("state/journal.db"),
        sync("state/journal.db"),
        unlink("state/journal.db-wal"),
      ],
    ],
  },
  {
    what: "a journal is made anew: all of it, then the old one has its second name, then the new one the old one's",
    step: "recover",
    orders: [
      [
        write("state/.recover/journal.db"),
        sync("state/.recover/journal.db"),
        /^link(at)?\(.*"state\/journal.db".*"state\/journal.db.damaged-/,
        rename("state/journal.db-wal", "state/journal.db.damaged-[^/]*-wal"),
        sync("state"),
        rename("state/.recover/journal.db", "state/journal.db"),
        sync("state"),
      ],
    ],
  },
];

test.each(ORDERS)("$what", unless(noStrace), ({ step, orders }) => {
  using own = testDirectory();
  const state = join(own.path, "state");
  cpSync(kept, state, { recursive: true, filter: (path) => !path.endsWith("control") });
  const calls = callsOf(own.path, join(import.meta.dirname, "../testing/steps.ts"), [step, state, job]);
  for (const order of orders) expect(missingIn(calls, order), calls.join("\n")).toBeUndefined();
});

test("what has been synced is not written to again before it has its name", unless(noStrace), () => {
  using own = testDirectory();
  const state = join(own.path, "state");
  cpSync(kept, state, { recursive: true, filter: (path) => !path.endsWith("control") });
  const program = join(import.meta.dirname, "../testing/steps.ts");
  for (const step of ["compress", "archive"]) {
    const calls = callsOf(own.path, program, [step, state, job]);
    const made = calls.flatMap(
      (call) => /^rename(?:at2?)?\(.*"([^"]+(?:\.new|\.partial-[^"/]+))"/.exec(call)?.[1] ?? [],
    );
    expect(made.length, step).toBeGreaterThan(0);
    for (const path of made.filter((each) => !each.endsWith("job.new"))) {
      const synced = calls.findLastIndex((call) => sync(path).test(call));
      expect(
        calls.findLastIndex((call) => write(path).test(call)),
        path,
      ).toBeLessThan(synced);
    }
  }
});

/** Every file below a directory that others may read, write or list. */
function openToOthers(directory: string): string[] {
  return readdirSync(directory, { recursive: true, encoding: "utf8" }).filter(
    (name) => (lstatSync(join(directory, name)).mode & 0o077) !== 0,
  );
}

test("what is kept of jobs is its owner's alone, whatever the umask, here and in an archive", async () => {
  using own = testDirectory();
  const [stateDir, path] = [join(own.path, "state"), join(own.path, "archive")];
  mkdirSync(path);
  const before = process.umask(0);
  try {
    const worker = await testWorker({ stateDir });
    const { id } = await finished(worker, sh("seq 3000; seq 500 >&2"));
    const other = await finished(worker, sh("seq 3000; seq 500 >&2"));
    await until("the records are beside the output", () => existsSync(join(worker.directory(id), "job")));
    await compressLog(worker.directory(other.id), new AbortController().signal, -1);
    expect(openToOthers(stateDir)).toEqual([]);
    await worker.close();
    recoverJournal(stateDir);
    expect(openToOthers(stateDir)).toEqual([]);
    const archiving = await testWorker({ stateDir, archive: { kind: "directory", path } });
    await until("it is archived", () => archiving.query(id).log?.kind === "archived");
    expect(openToOthers(stateDir)).toEqual([]);
    expect(openToOthers(path)).toEqual([]);
    await archiving.close();
  } finally {
    process.umask(before);
  }
});
