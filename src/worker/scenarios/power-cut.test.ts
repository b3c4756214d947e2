import { execFileSync } from "node:child_process";
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { basename, join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { describe, expect, test } from "vitest";
import { marked } from "../../testing/processes.ts";
import { unless } from "../../testing/root.ts";
import { noMounts, smallDisk } from "../../testing/disks.ts";
import { writeJobFile } from "../journal/job-file.ts";
import { recoverJournal } from "../journal/rebuild.ts";
import { isSupervised } from "../supervisor/control.ts";
import {
  finished,
  JOB,
  modes,
  open,
  readAll,
  refused,
  run,
  sh,
  startReady,
  testDirectory,
  testWorker,
  until,
  waits,
} from "../testing/worker.ts";

/* A crash of the host takes what was written last: of files that nobody syncs, and of the journal's -wal. */

/** A file of the same length, of which nothing had come to the disk. */
function zero(path: string): void {
  writeFileSync(path, Buffer.alloc(statSync(path).size));
}

function forget(stateDir: string, id: string): void {
  using database = new DatabaseSync(join(stateDir, "journal.db"));
  database.prepare("DELETE FROM jobs WHERE id = ?").run(id);
  database.exec("INSERT OR REPLACE INTO meta VALUES ('open', '1')");
}

test.each<[string, (exit: string) => void]>([
  ["is empty", (exit) => truncateSync(exit, 0)],
  ["is zeros", zero],
  ["is cut", (exit) => truncateSync(exit, statSync(exit).size - 8)],
  ["has one digit changed", (exit) => writeFileSync(exit, readFileSync(exit, "utf8").replace("code 0", "code 3"))],
])("a job whose exit record %s is lost, and is listed with all others", async (_what, damage) => {
  using files = testDirectory();
  const gate = join(files.path, "gate");
  await using worker = await testWorker();
  const other = await finished(worker, run("true"));
  const { id } = await startReady(worker, sh('echo ready; until [ -e "$0" ]; do sleep 0.01; done', gate));
  await worker.close();
  open(gate);
  const exit = join(worker.directory(id), "exit");
  await until("it has ended", () => existsSync(exit) && !isSupervised(worker.directory(id)));
  damage(exit);
  const ended = { how: { kind: "lost", reason: "its exit record is damaged" } };
  for (const _restart of [1, 2]) {
    const again = await testWorker({ stateDir: worker.stateDir });
    const job = await again.wait(id);
    expect(job).toMatchObject({ ended, output: { size: 6, first: 0, dropped: 0 } });
    expect(Number.isNaN(job.endedAt?.getTime())).toBe(false);
    expect(again.list({ limit: 10 }).jobs.map((each) => each.id)).toEqual([id, other.id]);
    await again.close();
  }
});

/** What may stand where a job's directory, or a file in it, was. */
const REPLACED: readonly (readonly [string, string, (path: string) => void])[] = [
  ["directory is a file now", ".", (path) => writeFileSync(path, "")],
  ["directory is a link to a file now", ".", (path) => symlinkSync("/etc/passwd", path)],
  ["directory is a link to itself now", ".", (path) => symlinkSync(path, path)],
  ["directory is a FIFO now", ".", (path) => execFileSync("mkfifo", [path])],
  ["index is a link to itself now", "index", (path) => symlinkSync(path, path)],
  ["output is a link to itself now", "output", (path) => symlinkSync(path, path)],
];

const withoutEither = ["with neither cgroup nor pid namespace", { ...modes[0]?.[1], isolationOff: ["pid"] }] as const;

describe.each([...modes, withoutEither])("%s", (_mode, options) => {
  test.each(REPLACED)("a job whose %s is stopped, also by the next worker", async (_what, file, replace) => {
    await using worker = await testWorker(options);
    const mark = `mark-${crypto.randomUUID()}`;
    const job = { ...sh("setsid sleep 1000 & echo ready; exec sleep 1000"), env: new Map([["MARK", mark]]) };
    const [one, other] = [await startReady(worker, job), await startReady(worker, job)];
    await until("both have two processes", () => marked(mark).length >= 4);
    for (const { id } of [one, other]) {
      rmSync(join(worker.directory(id), file), { recursive: true });
      replace(join(worker.directory(id), file));
    }
    expect((await worker.stop(one.id, { by: "tester", graceMs: 0 })).job.state).toBe("ended");
    await worker.close();
    await using again = await testWorker({ ...options, stateDir: worker.stateDir });
    expect((await again.stop(other.id, { by: "tester", graceMs: 0 })).job.state).toBe("ended");
    await until("no process of either runs", () => marked(mark).length === 0);
  });
});

describe("the output of a job that has ended", () => {
  const lines = sh("echo one; echo two");

  test.each<[string, (output: string) => void]>([
    ["more lines", (output) => appendFileSync(output, "three\n")],
    ["200 GB of holes", (output) => truncateSync(output, 200 * 2 ** 30)],
  ])("is read up to the end that its record tells of, with %s behind that", async (_what, lengthen) => {
    await using worker = await testWorker();
    const { id } = await finished(worker, lines);
    lengthen(join(worker.directory(id), "output"));
    expect((await readAll(worker.stream(id, {}))).text).toBe("one\ntwo\n");
    const position = { kind: "tail-lines", count: 1 } as const;
    expect((await readAll(worker.stream(id, { position }))).text).toBe("two\n");
  });

  test.each([0, 5])("that was cut to %i bytes is told as lost, once they have been read", async (bytes) => {
    await using worker = await testWorker();
    const { id } = await finished(worker, lines);
    truncateSync(join(worker.directory(id), "output"), bytes);
    const read: string[] = [];
    const error = await refused(async () => {
      for await (const piece of worker.stream(id, {})) if (piece.kind === "chunk") read.push(piece.bytes.toString());
    });
    expect(error).toMatchObject({ code: "data-loss", message: expect.stringContaining("shorter than it was") });
    expect(read.join("")).toBe("one\ntwo\n".slice(0, bytes));
  });

  test("is not compressed when its file is not as long as its end told", async () => {
    using files = testDirectory();
    const stateDir = join(files.path, "state");
    const worker = await testWorker({ stateDir });
    const { id } = await finished(worker, sh("seq 2000"));
    await worker.close();
    truncateSync(join(worker.directory(id), "output"), 200 * 2 ** 30);
    await using again = await testWorker({ stateDir, logCompress: "zstd" });
    const warning = "warn: files of a log are missing or damaged: the others are left as they are";
    await until("it is told", () => again.logged.includes(warning));
    expect(existsSync(join(worker.directory(id), "output"))).toBe(true);
  });

  test("whose index has records that nobody wrote is told as lost", async () => {
    await using worker = await testWorker();
    const { id } = await finished(worker, lines);
    truncateSync(join(worker.directory(id), "index"), 200 * 2 ** 30);
    expect(await refused(() => readAll(worker.stream(id, {})))).toMatchObject({ code: "data-loss" });
  });
});

test("a worker starts at once, however many jobs that run have lost their index", async () => {
  await using worker = await testWorker();
  const started = await Promise.all([1, 2, 3, 4].map(() => startReady(worker, waits)));
  for (const { id } of started) await until("it is recorded", () => existsSync(join(worker.directory(id), "job")));
  await worker.close();
  for (const { id } of started) rmSync(join(worker.directory(id), "index"));
  const before = performance.now();
  await using again = await testWorker({ stateDir: worker.stateDir });
  expect(performance.now() - before).toBeLessThan(15_000);
  for (const { id } of started) expect(again.query(id).state).toBe("running");
});

describe("a directory that the journal does not know, of which nothing can be read,", () => {
  test("is left and told; all else is found, by a recovery too", async () => {
    await using worker = await testWorker();
    const [damaged, unknown] = [await finished(worker, run("echo", "one")), await finished(worker, run("echo", "two"))];
    const { id } = await startReady(worker, waits);
    await worker.close();
    for (const each of [damaged.id, unknown.id, id]) forget(worker.stateDir, each);
    for (const file of ["job", "exit"]) rmSync(join(worker.directory(damaged.id), file));
    zero(join(worker.directory(damaged.id), "index"));
    const again = await testWorker({ stateDir: worker.stateDir });
    expect(
      again
        .list({ limit: 10 })
        .jobs.map((each) => each.id)
        .toSorted(),
    ).toEqual([unknown.id, id]);
    expect(again.logged).toContain("error: a directory that the journal does not know cannot be read, and is left");
    expect(existsSync(join(worker.directory(damaged.id), "output"))).toBe(true);
    await again.close();
    expect(recoverJournal(worker.stateDir)).toMatchObject({
      jobs: 2,
      ended: 1,
      running: 1,
      unreadable: [damaged.id],
      unstarted: [],
    });
    expect(existsSync(join(worker.directory(damaged.id), "output"))).toBe(true);
  });
});

test("a job whose index is damaged is as its record says, and its output is told as lost", async () => {
  await using worker = await testWorker();
  const { id } = await finished(worker, run("echo", "one"));
  await worker.close();
  forget(worker.stateDir, id);
  zero(join(worker.directory(id), "index"));
  await using again = await testWorker({ stateDir: worker.stateDir });
  expect(again.query(id)).toMatchObject({ command: "echo", ended: { exitCode: 0 } });
  expect(await refused(() => readAll(again.stream(id, {})))).toMatchObject({ code: "data-loss" });
});

test("a job that ended, and that the journal did not know, is taken in with its log", async () => {
  await using worker = await testWorker();
  const { id } = await finished(worker, run("echo", "one"));
  await worker.close();
  forget(worker.stateDir, id);
  await using again = await testWorker({ stateDir: worker.stateDir });
  expect(again.query(id)).toMatchObject({ state: "ended", log: { kind: "kept" } });
});

test("what a recovery calls not started, the next worker removes", async () => {
  await using worker = await testWorker();
  await worker.close();
  const directory = worker.directory("00000000000000000000000000");
  mkdirSync(directory);
  writeFileSync(join(directory, "output"), "");
  expect(recoverJournal(worker.stateDir).unstarted).toEqual([basename(directory)]);
  await using _again = await testWorker({ stateDir: worker.stateDir });
  expect(existsSync(directory)).toBe(false);
});

test("a record that the disk has no room for leaves the one before whole", unless(noMounts), () => {
  using files = testDirectory();
  using small = smallDisk(join(files.path, "disk"), 64 * 1024);
  writeJobFile("abc", small.path, { job: JOB, requestId: undefined, stoppedBy: undefined });
  const before = readFileSync(join(small.path, "job"), "utf8");
  small.fill();
  truncateSync(join(small.path, "ballast"), 32 * 1024); // some of it fits
  const longer = { ...JOB, args: ["x".repeat(100_000)] };
  expect(() => writeJobFile("abc", small.path, { job: longer, requestId: undefined, stoppedBy: undefined })).toThrow(
    "ENOSPC",
  );
  expect(readFileSync(join(small.path, "job"), "utf8")).toBe(before);
  expect(existsSync(join(small.path, "job.new"))).toBe(false);
});

test("of the directories that the journal does not know, those of jobs that it had settled before are not read", async () => {
  using files = testDirectory();
  const ids: string[] = [];
  for (const name of ["first", "second", "third"]) {
    const worker = await testWorker({ stateDir: files.path });
    ids.push((await finished(worker, run("echo", name))).id);
    await worker.close();
  }
  for (const id of ids) forget(files.path, id);
  await using worker = await testWorker({ stateDir: files.path });
  // The third worker had settled what was there when it was opened: all before the second job.
  expect(worker.list({ limit: 10 }).jobs.map(({ args }) => args[0])).toEqual(["third", "second"]);
});
