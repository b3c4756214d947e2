import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { describe, expect, test } from "vitest";
import type { Job } from "../model/job.ts";
import { JOB, jobDirectories, refused, run, testDaemon, testDirectory, testWorker, waits } from "../testing/worker.ts";
import { migrate } from "./database.ts";
import { type Journal, openJournal, VERSION } from "./journal.ts";
import { recoverJournal } from "./rebuild.ts";
import type { Search } from "./search.ts";

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

/** All jobs, newest first. */
const ALL = { before: Number.MAX_SAFE_INTEGER, limit: 5000, keep: () => true } as const;

/** Ids of j0 to j2999, whose labels tell their remainders; a third of them are bob's. */
function threeThousand(journal: Journal): string[] {
  const ids = Array.from({ length: 3000 }, (_, i) => `j${i}`);
  for (const [i, id] of ids.entries()) {
    const labels = new Map([3, 7, 500].map((n) => [`by-${n}`, String(i % n)]));
    journal.insert(job(id, { labels, owner: i % 3 === 0 ? "bob" : "ada" }), undefined);
  }
  return ids.toReversed();
}

type Condition = Pick<Search, "labels" | "owner">;
const label = (n: number, rest: number): [string, string] => [`by-${n}`, String(rest)];
const CONDITIONS: readonly (readonly [string, Condition, (i: number) => boolean])[] = [
  ["all", {}, () => true],
  ["an owner's", { owner: "bob" }, (i) => i % 3 === 0],
  ["nobody's", { owner: "eve" }, () => false],
  ["those with a label", { labels: new Map([label(3, 1)]) }, (i) => i % 3 === 1],
  ["those with an unknown label", { labels: new Map([["by-4", "1"]]) }, () => false],
  ["those with two labels", { labels: new Map([label(7, 2), label(3, 1)]) }, (i) => i % 7 === 2 && i % 3 === 1],
  ["an owner's with two labels", { owner: "bob", labels: new Map([label(500, 9), label(7, 2)]) }, (i) => i === 9],
  ["those with a label, whom somebody else owns", { owner: "bob", labels: new Map([label(3, 1)]) }, () => false],
];

test.each(CONDITIONS)(
  "of 3,000 jobs %s are found newest first, page by page, or a step at a time",
  (_, only, wanted) => {
    using directory = testDirectory();
    using journal = openJournal(directory.path);
    const all = threeThousand(journal).filter((id) => wanted(Number(id.slice(1))));
    const pages = (search: Partial<Search>): string[] => {
      const listed: string[] = [];
      for (let before: number | undefined = ALL.before; before !== undefined;) {
        const { records, next } = journal.list({ ...ALL, ...only, ...search, before });
        listed.push(...records.map((kept) => kept.job.id));
        before = next;
      }
      return listed;
    };
    expect(pages({})).toEqual(all);
    expect(pages({ limit: 100 })).toEqual(all);
    expect(pages({ untilMs: 0 })).toEqual(all);
    let seen = 0;
    expect(pages({ keep: () => ++seen < 0 })).toEqual([]);
    expect(seen).toBe(all.length); // the others are not decoded
    expect(pages({ skip: (seq) => seq % 2 === 0 })).toEqual(all.filter((id) => Number(id.slice(1)) % 2 === 0));
  },
);

test("a job that is removed is in no page, and its labels are nobody's", () => {
  using directory = testDirectory();
  const labels = new Map([["build", "42"]]);
  {
    using journal = openJournal(directory.path);
    const log = { kind: "archived", at: new Date(1), compressed: true } as const;
    for (const id of ["a", "b", "c"])
      journal.insert(job(id, { labels, ...(id === "a" && { log }) }), `request of ${id}`);
    journal.insert(job("d", { labels, state: "running" }), undefined);
    const removed = [
      { id: "a", archived: true },
      { id: "c", archived: false }, // there is no copy of its log
    ];
    expect(journal.removals.begin(["a", "c", "d", "nothing"], true)).toEqual(removed);
    journal.remove("b");
    expect(journal.list({ ...ALL, labels }).records.map((kept) => kept.job.id)).toEqual(["d"]);
    expect(journal.findRequest("tester", "request of a")).toBeUndefined();
    expect(["a", "b", "c", "d"].map((id) => journal.knows(id))).toEqual([true, false, true, true]);
    expect(journal.removals.pending(10)).toEqual(removed);
    journal.removals.done(["a", "c"]);
    expect(journal.knows("a")).toBe(false);
  }
  using database = new DatabaseSync(join(directory.path, "journal.db"));
  expect(database.prepare("SELECT seq FROM labels").all()).toEqual([{ seq: 4 }]);
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

  test("1 of this project's is brought to the newest: its jobs are found by owner, label and end", () => {
    using directory = testDirectory();
    {
      using database = new DatabaseSync(join(directory.path, "journal.db"));
      database.exec(readFileSync(join(import.meta.dirname, "testing/version-1.sql"), "utf8"));
      database.exec("UPDATE jobs SET job = '{\"labels\":' WHERE seq = 3");
    }
    using journal = openJournal(directory.path);
    const found = (only: Condition): number[] => journal.list({ ...ALL, ...only }).records.map(({ seq }) => seq);
    expect(found({})).toEqual([3, 2, 1]);
    expect(found({ owner: "ada" })).toEqual([3, 1]);
    expect(found({ labels: new Map([["build", "42"]]) })).toEqual([2, 1]);
    expect(found({ labels: new Map([["say", '"hé\\ \n']]) })).toEqual([1]);
    expect(journal.removals.endedFirst(10, true).map(({ seq }) => seq)).toEqual([1, 2, 3]);
    expect(journal.findRequest("ada", "r1")?.job.command).toBe("true");
    expect(journal.alive()).toEqual([]);
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
