import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { describe, expect, test } from "vitest";
import type { Job } from "../model/job.ts";
import { JOB, jobDirectories, refused, run, testDaemon, testDirectory, testWorker, waits } from "../testing/worker.ts";
import { migrate } from "./database.ts";
import { type Only, openJournal, VERSION } from "./journal.ts";
import { recoverJournal } from "./rebuild.ts";

function job(id: string, more: Partial<Job> = {}): Job {
  return { ...JOB, id, state: "ended", ...more };
}

test("a job comes back as it went in: bigints, maps, dates, and text that looks like them", () => {
  using directory = testDirectory();
  const whole = job("whole", {
    labels: new Map([
      ["createdAt", "2026-01-01T00:00:00.000Z"],
      ["$map", "[]"],
    ]),
    args: ["2026-01-01T00:00:00.000Z", '{"$bigint":"1"}', "\u{1f600}\ud800"],
    resources: { memory: { limit: 2n ** 63n - 1n }, cpu: { quota: -1n } },
    limits: new Map([["memory.max", "max"]]),
    timeLimitMs: 1500.5,
    createdAt: new Date(1),
    startedAt: new Date(1_790_000_000_123),
    endedAt: new Date(2),
    ended: { how: { kind: "lost", reason: "createdAt" }, exitCode: -1, signal: 0, killed: 3 },
    usage: { elapsedMs: 0.25, cpuUserUs: 1, cpuSystemUs: 2, fromCgroup: true },
  });
  {
    using journal = openJournal(directory.path);
    journal.insert(whole, "request");
    expect(journal.find("whole")?.job).toEqual(whole);
  }
  using journal = openJournal(directory.path);
  expect(journal.find("whole")?.job).toEqual(whole);
  expect(journal.findRequest("tester", "request")?.job).toEqual(whole);
});

test("a request id is one owner's, and can be used once", () => {
  using directory = testDirectory();
  using journal = openJournal(directory.path);
  journal.insert(job("a"), "r");
  journal.insert(job("b", { owner: "other" }), "r");
  journal.insert(job("c"), undefined);
  journal.insert(job("d"), undefined);
  expect(() => journal.insert(job("e"), "r")).toThrow("UNIQUE");
  expect(journal.findRequest("tester", "r")?.job.id).toBe("a");
  expect(journal.findRequest("other", "r")?.job.id).toBe("b");
  expect(journal.findRequest("nobody", "r")).toBeUndefined();
  journal.remove("a");
  expect(journal.findRequest("tester", "r")).toBeUndefined();
});

test("who asked first for a job's end is kept, through updates and a restart", () => {
  using directory = testDirectory();
  {
    using journal = openJournal(directory.path);
    journal.insert(job("a", { state: "running" }), undefined);
    journal.stopping("a", "ada");
    journal.stopping("a", "bob");
    journal.update(job("a", { state: "running", pid: 7 }));
  }
  using journal = openJournal(directory.path);
  expect(journal.alive()).toEqual([{ seq: 1, job: job("a", { state: "running", pid: 7 }), stoppedBy: "ada" }]);
  journal.update(job("a", { state: "ended" }));
  expect(journal.alive()).toEqual([]);
});

test("3,000 jobs are listed newest first, page after page, by state and label, each once", () => {
  using directory = testDirectory();
  using journal = openJournal(directory.path);
  const count = 3000;
  for (let i = 0; i < count; i++)
    journal.insert(
      job(`j${i}`, { state: i % 10 === 0 ? "running" : "ended", labels: new Map([["third", String(i % 3)]]) }),
      undefined,
    );
  const all = Array.from({ length: count }, (_, i) => `j${count - 1 - i}`);
  const listed: string[] = [];
  for (let before = Infinity; ;) {
    const { records, next } = journal.list(() => true, Math.min(before, Number.MAX_SAFE_INTEGER), 1000);
    listed.push(...records.map((kept) => kept.job.id));
    if (next === undefined) break;
    before = next;
  }
  expect(listed).toEqual(all);
  let seen = 0;
  const ids = (keep: (kept: Job) => boolean, most = Infinity, only: Only = {}): string[] =>
    journal
      .list((kept) => ++seen > 0 && keep(kept), Number.MAX_SAFE_INTEGER, most, only)
      .records.map((kept) => kept.job.id);
  expect(ids(() => true, Infinity, { alive: true })).toEqual(all.filter((id) => id.endsWith("0")));
  const third = ["j2998", "j2995", "j2992", "j2989", "j2986"];
  expect(ids(({ labels }) => labels.get("third") === "1", 5)).toEqual(third);
  expect(ids(() => false)).toEqual([]);
  seen = 0;
  expect(ids(() => true, 5, { label: ["third", "1"] })).toEqual(third);
  expect(ids(() => true, Infinity, { label: ["fourth", "1"] })).toEqual([]);
  expect(seen).toBe(5); // the others are not decoded
  expect(journal.alive()).toHaveLength(count / 10);
});

test.each<[string, Only]>([
  ["", {}],
  [" of those that run", { alive: true }],
  [" of those that have a label", { label: ["third", "1"] }],
])("a search%s that has no time left goes on where it was, and each step gets on", (_, only) => {
  using directory = testDirectory();
  using journal = openJournal(directory.path);
  for (let i = 0; i < 2000; i++)
    journal.insert(job(`j${i}`, { state: "running", labels: new Map([["third", String(i % 3)]]) }), undefined);
  const all = journal.list(() => true, Number.MAX_SAFE_INTEGER, 2000, only).records.map((kept) => kept.job.id);
  const stepwise: string[] = [];
  let steps = 0;
  for (let before: number | undefined = Number.MAX_SAFE_INTEGER; before !== undefined; steps++) {
    const { records, next } = journal.list(() => true, before, 2000, only, 0);
    stepwise.push(...records.map((kept) => kept.job.id));
    before = next;
  }
  expect(stepwise).toEqual(all);
  expect(steps).toBe(2000);
});

test("an instance is named once and for all; another state directory has another", () => {
  using one = testDirectory();
  using two = testDirectory();
  const instanceOf = (path: string): string => {
    using journal = openJournal(path);
    return journal.instance;
  };
  expect(instanceOf(one.path)).toMatch(/^[0-9a-f]{8}$/);
  expect(instanceOf(one.path)).toBe(instanceOf(one.path));
  expect(instanceOf(one.path)).not.toBe(instanceOf(two.path));
});

test.each([
  ["a reboot", "boot_id", "the host was rebooted"],
  ["a container that is started again", "init", "the container was restarted"],
])("%s shows, and only once", (_what, key, told) => {
  using directory = testDirectory();
  const interrupted = (): string | undefined => {
    using journal = openJournal(directory.path);
    return journal.interrupted;
  };
  expect(interrupted()).toBeUndefined();
  expect(interrupted()).toBeUndefined();
  using database = new DatabaseSync(join(directory.path, "journal.db"));
  database.prepare("UPDATE meta SET value = 'another' WHERE key = ?").run(key);
  database.close();
  expect(interrupted()).toBe(told);
  expect(interrupted()).toBeUndefined();
});

describe("two workers on one state directory:", () => {
  test("the second is refused, in the same process, and the first goes on", async () => {
    await using worker = await testWorker();
    const error = await refused(() => testWorker({ stateDir: worker.stateDir }));
    expect(error).toMatchObject({ code: "unavailable", facts: { reason: "locked" } });
    expect(error.message).toContain(join(worker.stateDir, "lock"));
    const { job: started } = await worker.start(run("true"));
    expect((await worker.wait(started.id)).ended?.exitCode).toBe(0);
  });

  test("the second is refused though the journal was moved away under the first; so is a recovery", async () => {
    await using worker = await testWorker();
    rmSync(join(worker.stateDir, "journal.db"));
    const locked = { code: "unavailable", facts: { reason: "locked" } };
    expect(await refused(() => testWorker({ stateDir: worker.stateDir }))).toMatchObject(locked);
    expect(await refused(() => recoverJournal(worker.stateDir))).toMatchObject(locked);
  });

  test("the second is refused while another process has it, touches nothing, and can have it when that one is gone", async () => {
    using directory = testDirectory();
    const stateDir = directory.path;
    await using daemon = await testDaemon({ stateDir });
    const { id } = await daemon.start(waits);
    const before = readdirSync(join(stateDir, "jobs", id));
    expect(await refused(() => testWorker({ stateDir }))).toMatchObject({
      code: "unavailable",
      facts: { reason: "locked" },
    });
    expect(jobDirectories(stateDir)).toEqual([id]);
    expect(readdirSync(join(stateDir, "jobs", id))).toEqual(before);
    await daemon.kill();
    await using worker = await testWorker({ stateDir });
    expect(worker.query(id).state).toBe("running");
  });
});

test("a killed daemon's rows are all there for the next", async () => {
  using directory = testDirectory();
  await using daemon = await testDaemon({ stateDir: directory.path });
  const ids: string[] = [];
  for (let i = 0; i < 20; i++) ids.unshift((await daemon.start(run("true"))).id);
  await daemon.kill();
  await using worker = await testWorker({ stateDir: directory.path });
  expect(worker.list({ limit: 100 }).jobs.map(({ id }) => id)).toEqual(ids);
});

test("only its owner can look into the state directory", async () => {
  await using worker = await testWorker();
  const { job: started } = await worker.start(waits);
  for (const path of [worker.stateDir, join(worker.stateDir, "jobs"), worker.directory(started.id)])
    expect({ path, mode: statSync(path).mode & 0o777 }).toEqual({ path, mode: 0o700 });
  expect(execFileSync("find", [worker.stateDir, "-perm", "/o+w", "-not", "-type", "l"]).toString()).toBe("");
});

describe("a database of an earlier version", () => {
  const steps = [
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL); CREATE TABLE t (a TEXT NOT NULL);",
    "ALTER TABLE t ADD COLUMN b INTEGER; UPDATE t SET b = length(a);",
    "CREATE INDEX t_b ON t (b);",
  ];
  const versionOf = (database: DatabaseSync): unknown =>
    database.prepare("PRAGMA user_version").get()?.["user_version"];

  test.each([1, 2, 3])("%i is brought to the newest, with what it holds", (version) => {
    using database = new DatabaseSync(":memory:");
    migrate(database, 0, steps.slice(0, version));
    database.exec("INSERT INTO t (a) VALUES ('two')");
    migrate(database, version, steps);
    expect(versionOf(database)).toBe(3);
    const b = version === 1 ? 3 : null;
    expect(database.prepare("SELECT a, b FROM t INDEXED BY t_b WHERE b IS ?").get(b)).toEqual({ a: "two", b });
  });

  test("is left as it was by a step that fails, and goes on with that step", () => {
    using database = new DatabaseSync(":memory:");
    migrate(database, 0, steps.slice(0, 1));
    database.exec("INSERT INTO t (a) VALUES ('two')");
    expect(() => migrate(database, 1, ["", "ALTER TABLE t ADD COLUMN b; UPDATE nothing SET a = 1;"])).toThrow(
      "nothing",
    );
    expect(versionOf(database)).toBe(1);
    migrate(database, 1, steps);
    expect(database.prepare("SELECT a, b FROM t").get()).toEqual({ a: "two", b: 3 });
  });

  test("of this project's is refused when it is newer", async () => {
    using directory = testDirectory();
    openJournal(directory.path)[Symbol.dispose]();
    using database = new DatabaseSync(join(directory.path, "journal.db"));
    migrate(database, VERSION, [...Array<string>(VERSION).fill(""), ""]);
    database.close();
    expect(await refused(() => openJournal(directory.path))).toMatchObject({ facts: { reason: "newer" } });
  });
});

test.each([
  ["version", 60],
  ["application id", 68],
])("a journal with any bit of its %s changed is damaged: neither newer nor another program's", async (_what, from) => {
  using directory = testDirectory();
  openJournal(directory.path)[Symbol.dispose]();
  mkdirSync(join(directory.path, "jobs"), { recursive: true });
  const path = join(directory.path, "journal.db");
  const whole = readFileSync(path);
  for (let bit = 0; bit < 32; bit++) {
    const bytes = Buffer.from(whole);
    const at = from + (bit >> 3);
    bytes[at] = (bytes[at] ?? 0) ^ (1 << (bit & 7));
    writeFileSync(path, bytes);
    expect(await refused(() => openJournal(directory.path))).toMatchObject({ facts: { reason: "damaged" } });
    expect(readFileSync(path).equals(bytes)).toBe(true);
  }
  expect(recoverJournal(directory.path)).toMatchObject({ instance: expect.stringMatching(/^[0-9a-f]{8}$/), jobs: 0 });
  openJournal(directory.path)[Symbol.dispose]();
});
