import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { describe, expect, test } from "vitest";
import type { Job } from "../model/job.ts";
import {
  JOB,
  jobDirectories,
  refused,
  run,
  testDaemon,
  testDirectory,
  testWorker,
  until,
  waits,
} from "../testing/worker.ts";
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

describe("a journal that an earlier version wrote", () => {
  const fixtures = join(import.meta.dirname, "testdata");

  test("is there for each version before this one, as a daemon of that version left it", () => {
    expect(readdirSync(fixtures).toSorted()).toEqual(
      Array.from({ length: VERSION - 1 }, (_, i) => `journal-${i + 1}.db`).toSorted(),
    );
  });

  test.each(Array.from({ length: VERSION - 1 }, (_, i) => i + 1))("%i: its jobs are as they were", (version) => {
    using directory = testDirectory();
    const path = join(directory.path, "journal.db");
    copyFileSync(join(fixtures, `journal-${version}.db`), path);
    const written = (): unknown[] => {
      using database = new DatabaseSync(path, { readOnly: true });
      return database
        .prepare("SELECT seq, id, owner, request_id, state, stopped_by, json(job) AS job FROM jobs ORDER BY seq DESC")
        .all();
    };
    const before = written();
    {
      using journal = openJournal(directory.path);
      expect(journal.instance).toBe("8ae861bb");
      expect(journal.alive().map(({ job: { command, args, state } }) => ({ command, args, state }))).toEqual([
        { command: "sleep", args: ["1000"], state: "starting" },
      ]);
      const { records: kept } = journal.list(() => true, Number.MAX_SAFE_INTEGER, 100);
      expect(kept.map(({ job: each }) => each.ended?.how)).toEqual([
        undefined,
        { kind: "lost", reason: "its supervisor ended without a record" },
        { kind: "stopped", by: "writer", escalated: true },
        { kind: "stopped", by: "writer", escalated: false },
        { kind: "timed-out", limitMs: 200 },
        { kind: "signalled", signal: 9, coreDumped: false },
        { kind: "exited", code: 3 },
      ]);
      const first = kept.at(-1);
      expect(first?.job).toMatchObject({
        id: "w1.01m88s2fybkt648gw0v0b9ghxn",
        args: ["-c", "echo out; echo err >&2; exit 3"],
        labels: new Map([["team", "blue"]]),
        createdAt: new Date("2026-11-25T07:17:42.627Z"),
        usage: { elapsedMs: 1.053001, fromCgroup: true },
        output: { size: 8, first: 0, dropped: 0 },
      });
      expect(journal.findRequest("writer", "649439f9-cbcc-4fec-9f46-688e19c41800")).toEqual(first);
      for (const { job: each } of kept) journal.update(each);
    }
    expect(written()).toEqual(before);
  });

  test("1: where its logs are is known of those that had ended, to the millisecond and the byte", () => {
    using directory = testDirectory();
    const path = join(directory.path, "journal.db");
    copyFileSync(join(fixtures, "journal-1.db"), path);
    openJournal(directory.path)[Symbol.dispose]();
    using database = new DatabaseSync(path, { readOnly: true });
    const columns = "ended_at, log, log_bytes, log_zstd, log_at, log_why, log_until, log_due";
    const rows = database.prepare(`SELECT ${columns} FROM jobs ORDER BY seq`).all();
    const none = { log_zstd: null, log_at: null, log_why: null, log_until: null, log_due: null };
    const kept = (endedAt: string, bytes: number): object => ({
      ended_at: Date.parse(endedAt),
      log: "kept",
      log_bytes: bytes,
      ...none,
    });
    expect(rows).toEqual([
      kept("2026-11-25T07:17:42.631Z", 8),
      kept("2026-11-25T07:17:44.704Z", 0),
      kept("2026-11-25T07:17:46.091Z", 0),
      kept("2026-11-25T07:17:48.735Z", 0),
      kept("2026-11-25T07:17:51.077Z", 0),
      kept("2026-11-25T07:17:51.899Z", 0),
      { ended_at: null, log: null, log_bytes: null, ...none },
    ]);
  });

  test("1: of its logs, those that are old are pruned, and no other", async () => {
    using directory = testDirectory();
    const path = join(directory.path, "journal.db");
    copyFileSync(join(fixtures, "journal-1.db"), path);
    const ids: string[] = [];
    {
      using database = new DatabaseSync(path);
      const young = database.prepare("UPDATE jobs SET job = json_set(job, '$.endedAt', ?) WHERE seq IN (2, 5)");
      young.run(new Date().toISOString());
      const ended = database.prepare("SELECT id FROM jobs WHERE state = 'ended' ORDER BY seq").all();
      ids.push(...ended.map(({ id }) => String(id)));
    }
    for (const id of ids) {
      mkdirSync(join(directory.path, "jobs", id), { recursive: true });
      for (const file of ["output", "index"]) writeFileSync(join(directory.path, "jobs", id, file), "");
    }
    await using worker = await testWorker({ stateDir: directory.path, logPrune: { ageMs: 3_600_000 } });
    const whyOf = (id: string): unknown => {
      const { log } = worker.query(id);
      return log?.kind === "pruned" ? log.why : log?.kind;
    };
    await until("the last of the old has gone", () => jobDirectories(directory.path).length === 2);
    expect(ids.map(whyOf)).toEqual(["age", "kept", "age", "age", "kept", "age"]);
    expect(jobDirectories(directory.path)).toEqual([ids[1], ids[4]]);
  });
});
