import { spawnSync } from "node:child_process";
import { hash, randomBytes } from "node:crypto";
import {
  chmodSync,
  chownSync,
  closeSync,
  copyFileSync,
  cpSync,
  existsSync,
  linkSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { needsRoot, unless } from "../../testing/root.ts";
import { noInjection } from "../../testing/strace.ts";
import { openJournal, VERSION } from "../journal/journal.ts";
import { recoverJournal } from "../journal/rebuild.ts";
import type { Job } from "../model/job.ts";
import {
  finished,
  JOB,
  readAll,
  refused,
  run,
  startReady,
  testDaemon,
  testDirectory,
  testWorker,
  until,
  waits,
} from "../testing/worker.ts";
import type { Worker } from "../worker.ts";

/* Journals that cannot be used. Each is what a real worker left, and was then damaged. */

const JOBS = 40;
const states = testDirectory();
/** Of a worker that closed, and of a daemon that was killed: that one has a -wal. */
const [closed, killed] = [join(states.path, "closed"), join(states.path, "killed")];

beforeAll(async () => {
  {
    await using worker = await testWorker({ stateDir: closed });
    for (let i = 0; i < JOBS; i++) await finished(worker, run("echo", "x".repeat(1000)));
    const { job } = await worker.start(waits);
    await worker.close();
    process.kill(job.pid, "SIGKILL");
    cpSync(closed, `${closed}-kept`, { recursive: true, filter: (path) => !path.endsWith("control") });
    renameSync(`${closed}-kept`, join(states.path, "keep"));
  }
  rmSync(closed, { recursive: true, force: true });
  renameSync(join(states.path, "keep"), closed);
  await using daemon = await testDaemon({ stateDir: killed });
  for (let i = 0; i < JOBS; i++) await daemon.start(run("echo", "x".repeat(1000)));
  await until("the last has ended", () => {
    const [last = ""] = readdirSync(join(killed, "jobs"))
      .filter((name) => !name.startsWith("."))
      .toSorted()
      .toReversed();
    return existsSync(join(killed, "jobs", last, "exit"));
  });
  await daemon.kill();
});
afterAll(() => states[Symbol.dispose]());

function copyOf(state: string): Disposable & { readonly path: string; readonly journal: string } {
  const directory = testDirectory();
  const path = join(directory.path, "state");
  cpSync(state, path, { recursive: true, filter: (file) => !file.endsWith("control") });
  return { path, journal: join(path, "journal.db"), [Symbol.dispose]: () => directory[Symbol.dispose]() };
}

/** Every file with its mode and what is in it. */
function listing(path: string): string[] {
  return readdirSync(path, { recursive: true, encoding: "utf8" })
    .toSorted()
    .filter((name) => name !== "lock" && name !== "jobs/.spares")
    .map((name) => {
      const file = join(path, name);
      const { mode, size } = statSync(file);
      return `${name} ${mode} ${statSync(file).isFile() ? hash("sha256", readFileSync(file)) : size}`;
    });
}

function overwrite(path: string, from: number, bytes: string | Uint8Array): void {
  const file = openSync(path, "r+");
  writeSync(file, Buffer.from(bytes), 0, bytes.length, from);
  closeSync(file);
}

function sql(path: string, text: string): void {
  using database = new DatabaseSync(path);
  database.exec(text);
}

const PAGE = 4096;
const RECOVER = /jobsd --recover --state /;

/** The page that a b-tree begins at. */
function rootPage(path: string, name: string): number {
  using database = new DatabaseSync(path);
  return Number(database.prepare("SELECT rootpage FROM sqlite_master WHERE name = ?").get(name)?.["rootpage"]);
}

describe("a journal that cannot be used is told in one line, with what helps, and nothing is changed:", () => {
  test.each<[string, string, (path: string) => void, RegExp, RegExp?]>([
    ["missing, with jobs", closed, (path) => rmSync(path), /is missing, though there are jobs/],
    ["empty, with jobs", closed, (path) => truncateSync(path, 0), /is empty, though there are jobs/],
    ["cut within its header", closed, (path) => truncateSync(path, 50), /damaged/],
    ["cut within its first page", closed, (path) => truncateSync(path, 2000), /damaged/],
    ["cut behind its first page", closed, (path) => truncateSync(path, PAGE), /malformed/],
    ["cut in the middle", closed, (path) => truncateSync(path, Math.floor(statSync(path).size / 2)), /malformed/],
    ["random bytes", closed, (path) => writeFileSync(path, randomBytes(20_000)), /not a database/],
    ["zeros", closed, (path) => writeFileSync(path, Buffer.alloc(20_000)), /not a database/],
    [
      "text",
      closed,
      (path) => writeFileSync(path, "my notes\n".repeat(99)),
      /not a database, but text/,
      /another --state/,
    ],
    ["a damaged schema", closed, (path) => overwrite(path, 105, randomBytes(3000)), /malformed|damaged/],
    ["damaged rows", closed, (path) => overwrite(path, PAGE, randomBytes(statSync(path).size - PAGE)), /malformed/],
    [
      "a damaged index of those that run",
      closed,
      (path) => overwrite(path, (rootPage(path, "jobs_alive") - 1) * PAGE, Buffer.alloc(PAGE, 0xa5)),
      /malformed/,
    ],
    [
      "another program's database",
      closed,
      (path) => {
        rmSync(path);
        sql(path, "CREATE TABLE photos (id INTEGER); PRAGMA user_version = 1;");
      },
      /another program's database \(tables: photos\)/,
      /another --state/,
    ],
    [
      "of a newer version",
      closed,
      (path) =>
        sql(path, `PRAGMA user_version = ${VERSION + 1}; UPDATE meta SET value = ${VERSION + 1} WHERE key = 'version'`),
      new RegExp(`newer version of jobs \\(${VERSION + 1}; this one writes ${VERSION}\\)`),
      /run that version/,
    ],
    [
      "a directory",
      closed,
      (path) => {
        rmSync(path);
        mkdirSync(path);
      },
      /is a directory/,
      /move it away/,
    ],
    [
      "with another database's -wal",
      killed,
      (path) => {
        using other = testDirectory();
        using database = new DatabaseSync(join(other.path, "db"));
        database.exec("PRAGMA journal_mode = WAL; CREATE TABLE photos (id INTEGER, data BLOB)");
        database.exec("INSERT INTO photos SELECT value, randomblob(3000) FROM json_each('[1,2,3,4,5,6,7,8,9]')");
        copyFileSync(join(other.path, "db-wal"), `${path}-wal`);
      },
      /another program's database|malformed/,
      /./,
    ],
    ["damaged in the middle, with a -wal", killed, (path) => overwrite(path, 0, randomBytes(PAGE)), /not a database/],
  ])("%s", async (_what, state, damage, told, help = RECOVER) => {
    using copy = copyOf(state);
    damage(copy.journal);
    const before = listing(copy.path);
    const error = await refused(() => testWorker({ stateDir: copy.path }));
    expect(error.code).toBe("unavailable");
    expect(error.message).toMatch(told);
    expect(error.message).toMatch(help);
    expect(error.message).toContain(copy.journal);
    expect(error.message).not.toContain("\n");
    expect(listing(copy.path)).toEqual(before);
  });

  test("held by another program", async () => {
    using copy = copyOf(closed);
    using other = new DatabaseSync(copy.journal);
    other.exec("BEGIN EXCLUSIVE");
    const before = listing(copy.path);
    expect(await refused(() => testWorker({ stateDir: copy.path }))).toMatchObject({ facts: { reason: "locked" } });
    expect(listing(copy.path)).toEqual(before);
  });

  test.each<[string, (state: string) => void, RegExp]>([
    ["that nobody else may read", (state) => chownSync(join(state, "journal.db"), 0, 0), /uid 65534.*chown/],
    ["in a directory that it may not write", (state) => chownSync(state, 0, 0), /uid 65534|cannot be used/],
  ])("as a user without rights: a journal %s", needsRoot, (_what, deny, told) => {
    using copy = copyOf(closed);
    chmodSync(join(copy.path, ".."), 0o755);
    spawnSync("chown", ["-R", "65534:65534", copy.path]);
    deny(copy.path);
    chmodSync(join(copy.path, "journal.db"), 0o600);
    chmodSync(copy.path, 0o755);
    const before = listing(copy.path);
    const { stderr, status } = openAs(65534, copy.path);
    expect(stderr).toMatch(told);
    expect(status).toBe(1);
    expect(listing(copy.path)).toEqual(before);
  });

  test("on a file system that is read-only", needsRoot, () => {
    using copy = copyOf(closed);
    const script = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"';
    const { stderr, status } = spawnSync(
      "unshare",
      ["-m", "sh", "-c", script, "sh", copy.path, process.execPath, "--input-type=module", "-e", OPEN, copy.path],
      { encoding: "utf8" },
    );
    expect(stderr).toMatch(/read-only/i);
    expect(status).toBe(1);
  });
});

test("a journal that its disk does not give back is left as it is", unless(noInjection), () => {
  using copy = copyOf(killed);
  const before = listing(copy.path);
  const inject = ["-e", "trace=pread64", "-e", "inject=pread64:error=EIO:when=2+", "-P", copy.journal];
  const open = [process.execPath, "--input-type=module", "-e", OPEN, copy.path];
  const { stderr, status } = spawnSync("strace", ["-f", "-qq", "-o", "/dev/null", ...inject, ...open], {
    encoding: "utf8",
  });
  expect(stderr).toMatch(/journal\.db cannot be read from its disk; it was left as it is: jobsd --recover/);
  expect(status).toBe(1);
  expect(listing(copy.path)).toEqual(before);
});

describe("a recovery that was killed, of a journal whose -wal alone tells of jobs,", () => {
  /** As the recovery leaves it; of the jobs' directories nothing is left. */
  function cut(): ReturnType<typeof copyOf> & { readonly aside: string } {
    const copy = copyOf(killed);
    rmSync(join(copy.path, "jobs"), { recursive: true });
    mkdirSync(join(copy.path, "jobs"));
    const aside = `${copy.journal}.damaged-20261128T000000Z`;
    linkSync(copy.journal, aside);
    return { ...copy, aside };
  }

  test("before the -wal was put aside, has them when it is run again", () => {
    using copy = cut();
    expect(recoverJournal(copy.path)).toMatchObject({ salvaged: JOBS });
  });

  test("after it was, has them too", () => {
    using copy = cut();
    renameSync(`${copy.journal}-wal`, `${copy.aside}-wal`);
    expect(recoverJournal(copy.path)).toMatchObject({ salvaged: JOBS });
  });

  test("after it was, and with a daemon since, has what that one recorded", async () => {
    using copy = cut();
    renameSync(`${copy.journal}-wal`, `${copy.aside}-wal`);
    const worker = await testWorker({ stateDir: copy.path });
    const { id } = await finished(worker, run("true"));
    await worker.close();
    rmSync(worker.directory(id), { recursive: true });
    expect(recoverJournal(copy.path)).toMatchObject({ salvaged: 1, unread: 0 });
  });
});

const OPEN = `
  import { openWorker } from ${JSON.stringify(new URL("../worker.ts", import.meta.url).href)};
  try { const worker = await openWorker({ stateDir: process.argv[1] }); await worker.close(); }
  catch (error) { console.error(error.message); process.exit(1); }
`;

/** Opens a worker as a user of the host. */
function openAs(uid: number, stateDir: string): { readonly stderr: string; readonly status: number | null } {
  const args = [
    `--reuid=${uid}`,
    `--regid=${uid}`,
    "--clear-groups",
    process.execPath,
    "--input-type=module",
    "-e",
    OPEN,
  ];
  return spawnSync("setpriv", [...args, stateDir], { encoding: "utf8" });
}

describe("a journal that lost what was recorded last is made good from the jobs' directories:", () => {
  test.each<[string, (wal: string) => void]>([
    ["its -wal is damaged", (wal) => overwrite(wal, Math.floor(statSync(wal).size / 2), randomBytes(5000))],
    ["its -wal is cut", (wal) => truncateSync(wal, Math.floor(statSync(wal).size / 3))],
    ["its -wal is missing", (wal) => rmSync(wal)],
  ])("%s", async (_what, damage) => {
    using copy = copyOf(killed);
    damage(`${copy.journal}-wal`);
    await using worker = await testWorker({ stateDir: copy.path });
    const { jobs } = worker.list({ limit: 100 });
    expect(jobs).toHaveLength(JOBS);
    const ended = await Promise.all(jobs.map(({ id }) => worker.wait(id)));
    expect(ended.map(({ ended: end }) => end?.how)).toEqual(jobs.map(() => ({ kind: "exited", code: 0 })));
    expect(worker.logged).toContain("warn: jobs were not in the journal, and have been taken from their directories");
  });
});

/** Damage of one row: the `SET` of an update. */
const ROWS: readonly (readonly [string, string])[] = [
  ["text that is no JSON", "job = '{' || job"],
  ["no text", "job = ''"],
  ["bytes", "job = x'00ff'"],
  ["null", "job = 'null'"],
  ["one digit of its end", `job = replace(job, '"exitCode":0', '"exitCode":1')`],
  ["another job's text", "job = (SELECT job FROM jobs WHERE seq = 1)"],
  ["another job's record", "(job, crc32) = (SELECT job, crc32 FROM jobs WHERE seq = 1)"],
  ["another's CRC-32", "crc32 = crc32 + 1"],
  ["a log that is nowhere", "log = 'lost'"],
  ["a log of more bytes than a number holds", "log_bytes = 9223372036854775807"],
];

function everyJob(worker: Worker): Job[] {
  const all: Job[] = [];
  let { jobs, nextPageToken } = worker.list({ limit: 1000 });
  for (all.push(...jobs); nextPageToken !== undefined; all.push(...jobs))
    ({ jobs, nextPageToken } = worker.list({ limit: 1000, pageToken: nextPageToken }));
  return all;
}

describe("a record that is damaged", () => {
  const GOOD = 3000;

  test.each(ROWS)("by %s is one job that says so; thousands of others are as they were", async (_what, damage) => {
    using copy = copyOf(closed);
    {
      using journal = openJournal(copy.path);
      const ended = { ...JOB, state: "ended", endedAt: new Date(1) } as const;
      for (let i = 0; i < GOOD; i++) journal.insert({ ...ended, id: `01good${i}` }, undefined);
    }
    sql(copy.journal, `UPDATE jobs SET ${damage} WHERE seq = 7`);
    let id = "";
    {
      using database = new DatabaseSync(copy.journal);
      id = String(database.prepare("SELECT id FROM jobs WHERE seq = 7").get()?.["id"]);
    }
    for (const restart of [0, 1]) {
      const worker = await testWorker({ stateDir: copy.path });
      const listed = everyJob(worker);
      expect(listed).toHaveLength(GOOD + JOBS + 1 + restart);
      expect(listed.filter(({ damaged }) => damaged !== undefined).map((job) => job.id)).toEqual([id]);
      const told = { id, state: "ended", owner: "tester", damaged: expect.stringMatching(/^its record .* \(row 7: /) };
      expect(worker.query(id)).toMatchObject({ ...told, ended: { how: { kind: "lost", reason: told.damaged } } });
      expect(await worker.wait(id)).toMatchObject(told);
      expect((await readAll(worker.stream(id, {}))).text).toBe(`${"x".repeat(1000)}\n`);
      expect(worker.logged.filter((line) => line.includes("a job's record is damaged"))).toHaveLength(1);
      expect((await finished(worker, run("echo", "fine"))).text).toBe("fine\n");
      await worker.close();
    }
  });

  test("keeps no worker from starting that is to compress logs for the first time", async () => {
    using copy = copyOf(closed);
    sql(copy.journal, "UPDATE jobs SET job = '{' || job WHERE seq = 7");
    await using worker = await testWorker({ stateDir: copy.path, logCompress: "zstd" });
    expect(everyJob(worker).filter(({ damaged }) => damaged !== undefined)).toHaveLength(1);
  });

  test.each([
    ["is read from its directory, when the next worker starts", true],
    ["and that its directory has no other of, runs on, and can be stopped", false],
  ])("of a job that runs %s", async (_what, kept) => {
    await using worker = await testWorker();
    const { id, pid } = await startReady(worker, { ...waits, requestId: "once" });
    await until("its record is in its directory", () => existsSync(join(worker.directory(id), "job")));
    await worker.close();
    sql(join(worker.stateDir, "journal.db"), "UPDATE jobs SET job = substr(job, 1, 100)");
    if (!kept) rmSync(join(worker.directory(id), "job"));
    await using again = await testWorker({ stateDir: worker.stateDir });
    expect(again.query(id)).toMatchObject({
      state: "running",
      pid,
      owner: "tester",
      command: kept ? "sh" : "(unknown)",
    });
    expect(again.logged.filter((line) => line.includes("a job's record is damaged"))).toHaveLength(1);
    expect((await again.start({ ...waits, requestId: "once" })).job.id).toBe(id);
    expect((await again.stop(id, { by: "tester" })).job.ended?.how).toMatchObject({ kind: "stopped" });
    expect(again.list({ limit: 10 }).jobs.map(({ damaged }) => damaged)).toEqual([undefined]);
  });
});

describe("what is found damaged later", () => {
  test("a page of rows that nobody needed at the start", () => {
    using copy = copyOf(closed);
    overwrite(copy.journal, statSync(copy.journal).size - 5 * PAGE, Buffer.alloc(PAGE, 0xff));
    using journal = openJournal(copy.path);
    const read = (): number => journal.list({ before: 1e9, limit: 1000, keep: () => true }).records.length;
    expect(read).toThrow(/malformed.*jobsd --recover/);
    expect(journal.alive()).toHaveLength(1);
  });
});
