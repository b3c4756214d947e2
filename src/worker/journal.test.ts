import { execFileSync } from "node:child_process";
import { closeSync, mkdirSync, openSync, readFileSync, readdirSync, statSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { describe, expect, test } from "vitest";
import type { Job } from "./job.ts";
import { openJournal } from "./journal.ts";
import { jobDirectories, modes, refused, run, testDaemon, testDirectory, testWorker, waits } from "./testing.ts";

function job(id: string, more: Partial<Job> = {}): Job {
  return {
    id,
    state: "ended",
    command: "true",
    args: [],
    envNames: [],
    cwd: "/",
    user: "nobody",
    group: "nogroup",
    labels: new Map(),
    limits: new Map(),
    owner: "tester",
    pid: 0,
    createdAt: new Date(0),
    output: { size: 0, first: 0, dropped: 0 },
    warnings: [],
    ...more,
  };
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
    const page = journal.list(() => true, Math.min(before, Number.MAX_SAFE_INTEGER), 1000);
    listed.push(...page.map((kept) => kept.job.id));
    const last = page.at(-1);
    if (!last) break;
    before = last.seq;
  }
  expect(listed).toEqual(all);
  const ids = (keep: (kept: Job) => boolean, most = Infinity, alive?: boolean): string[] =>
    journal.list(keep, Number.MAX_SAFE_INTEGER, most, alive).map((kept) => kept.job.id);
  expect(ids(() => true, Infinity, true)).toEqual(all.filter((id) => id.endsWith("0")));
  const third = ["j2998", "j2995", "j2992", "j2989", "j2986"];
  expect(ids(({ labels }) => labels.get("third") === "1", 5)).toEqual(third);
  expect(ids(() => false)).toEqual([]);
  expect(journal.alive()).toHaveLength(count / 10);
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

test("a reboot shows in the boot id, and only once", () => {
  using directory = testDirectory();
  const rebooted = (): boolean => {
    using journal = openJournal(directory.path);
    return journal.rebooted;
  };
  expect(rebooted()).toBe(false);
  expect(rebooted()).toBe(false);
  using database = new DatabaseSync(join(directory.path, "journal.db"));
  database.exec("UPDATE meta SET value = 'another boot' WHERE key = 'boot_id'");
  database.close();
  expect(rebooted()).toBe(true);
  expect(rebooted()).toBe(false);
});

describe("two workers on one state directory:", () => {
  test("the second is refused, in the same process, and the first goes on", async () => {
    await using worker = await testWorker();
    const error = await refused(() => testWorker({ stateDir: worker.stateDir }));
    expect(error).toMatchObject({ code: "unavailable", facts: { reason: "locked" } });
    expect(error.message).toContain(join(worker.stateDir, "journal.db"));
    const { job: started } = await worker.start(run("true"));
    expect((await worker.wait(started.id)).ended?.exitCode).toBe(0);
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

describe("a journal that cannot be read is refused with its path, and left as it is:", () => {
  const overwrite = (path: string, from: number, to: number): void => {
    const file = openSync(path, "r+");
    writeSync(file, Buffer.alloc(to - from, "A"), 0, to - from, from);
    closeSync(file);
  };
  test.each<[string, (path: string) => void, string]>([
    ["no database at all", (path) => writeFileSync(path, "these are my notes\n".repeat(100)), "not a database"],
    ["cut short", (path) => writeFileSync(path, readFileSync(path).subarray(0, 5000)), "malformed"],
    ["a damaged schema", (path) => overwrite(path, 105, 4000), "malformed"],
    ["damaged rows", (path) => overwrite(path, 4096, statSync(path).size), "malformed"],
    ["of a newer version", (path) => setVersion(path, 3), "newer version of jobs (3; this one writes 2)"],
  ])("%s", async (_what, damage, message) => {
    using directory = testDirectory();
    const path = join(directory.path, "journal.db");
    {
      using journal = openJournal(directory.path);
      for (let i = 0; i < 100; i++) journal.insert(job(`j${i}`, { state: "running" }), undefined);
    }
    damage(path);
    const before = readFileSync(path);
    for (const [, options] of modes) {
      const error = await refused(() => testWorker({ ...options, stateDir: directory.path }));
      expect(error.code).toBe("unavailable");
      expect(error.message).toContain(message);
      expect(error.message).toContain(path);
      expect(readFileSync(path)).toEqual(before);
    }
  });

  function setVersion(path: string, version: number): void {
    using database = new DatabaseSync(path);
    database.exec(`PRAGMA user_version = ${version}`);
  }

  test("a directory", async () => {
    using directory = testDirectory();
    mkdirSync(join(directory.path, "journal.db"));
    expect(await refused(() => testWorker({ stateDir: directory.path }))).toMatchObject({ code: "unavailable" });
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
