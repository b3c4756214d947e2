import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { unless } from "../../testing/root.ts";
import { erringDisk, ext4Disk, noMounts, noReadOnly, smallDisk } from "../../testing/disks.ts";
import { failing, noInjection } from "../../testing/strace.ts";
import { openHierarchy } from "../cgroup/hierarchy.ts";
import { openJournal } from "../journal/journal.ts";
import { patient } from "../journal/patient.ts";
import { openLog } from "../log/log.ts";
import type { LinuxResources } from "../model/resources.ts";
import {
  finished,
  JOB,
  modes,
  open,
  readAll,
  refused,
  rmGroup,
  run,
  runs,
  sh,
  startReady,
  testDaemon,
  testDirectory,
  testWorker,
  until,
  waits,
} from "../testing/worker.ts";

const MiB = 1024 * 1024;
const by = "tester";
const disks = [
  ["tmpfs", smallDisk, 4 * MiB],
  ["ext4", ext4Disk, 16 * MiB],
] as const;

const host = openHierarchy(`jobs-test-${crypto.randomUUID().slice(0, 8)}`);
if (host.kind === "cgroup2") rmGroup(host.path);
const limits: readonly [string, string, (amount: bigint) => LinuxResources][] = [
  ["pids", "pids.max", (amount) => ({ pids: { limit: amount } })],
  ["hugetlb", "hugetlb.2MB.max", (amount) => ({ hugepageLimits: [{ pageSize: "2MB", limit: amount << 21n }] })],
];
/** Those that this host can keep. */
const kept = limits.filter(([controller]) => host.kind === "cgroup2" && host.controllers.has(controller));

describe("where system calls fail", unless(noInjection), () => {
  test.each([
    ["inotify_init1", "EMFILE"], // once a process: the first that follows anything asks for it
    ["inotify_add_watch", "ENOSPC"],
  ])("a follower whose %s meets %s is refused as exhausted, and no other reader", async (call, errno) => {
    await using worker = await testWorker();
    const { job } = await worker.start(sh("echo ready; exec sleep 1000"));
    await until("it is ready", () => worker.query(job.id).output.size > 0);
    {
      await using fault = await failing(process.pid, call, errno);
      expect(await refused(() => readAll(worker.stream(job.id, { follow: true })))).toMatchObject({
        code: "exhausted",
        facts: { errno },
      });
      await fault.met();
      expect((await readAll(worker.stream(job.id, {}))).text).toBe("ready\n");
    }
    const followed = readAll(worker.stream(job.id, { follow: true }));
    await worker.stop(job.id, { by });
    expect((await followed).text).toBe("ready\n");
  });

  test.each(["ENOSPC", "EDQUOT", "EIO", "EROFS"])(
    "a start whose directory cannot be given its name for %s is refused as exhausted, and leaves nothing",
    async (errno) => {
      await using worker = await testWorker();
      {
        await using _fault = await failing(process.pid, "rename", errno);
        expect(await refused(() => worker.start({ ...run("true"), requestId: "r" }))).toMatchObject({
          code: "exhausted",
          facts: { stage: "directory", errno },
        });
        expect(worker.traces()).toEqual([]);
      }
      expect((await worker.start({ ...waits, requestId: "r" })).alreadyStarted).toBe(false);
    },
  );

  test.each(["ENOSPC", "EDQUOT", "EIO", "EROFS", "EMFILE"])(
    "a job whose record cannot be written beside its output for %s ends as it would, and the journal has it",
    async (errno) => {
      await using worker = await testWorker();
      const { id } = await startReady(worker, waits);
      const file = join(worker.directory(id), "job");
      await until("it has been written", () => existsSync(file));
      const before = readFileSync(file, "utf8");
      {
        await using fault = await failing(process.pid, "openat", errno, `${file}.new`);
        expect((await worker.stop(id, { by })).job.ended).toMatchObject({ how: { kind: "stopped" } });
        await fault.met();
        const told = "error: a job's record could not be written beside its output";
        await until("it is told", () => worker.logged.includes(told));
      }
      expect(readFileSync(file, "utf8")).toBe(before);
      const ended = worker.query(id);
      await worker.close();
      await using again = await testWorker({ stateDir: worker.stateDir });
      expect(again.query(id)).toEqual(ended);
    },
  );

  test.each(["EIO", "EMFILE"])(
    "a worker that meets %s at the exit record of what ended meanwhile tells the end once it can, and not as lost",
    async (errno) => {
      await using worker = await testWorker();
      const { id } = await startReady(worker, { ...waits, timeLimitMs: 100 });
      await worker.close();
      const exit = join(worker.directory(id), "exit");
      await until("it has its exit record", () => existsSync(exit));
      await using fault = await failing(process.pid, "openat", errno, exit);
      await using again = await testWorker({ stateDir: worker.stateDir });
      await fault.met(2);
      expect(again.query(id).state).toBe("running");
      await fault[Symbol.asyncDispose]();
      expect((await again.wait(id)).ended?.how).toEqual({ kind: "timed-out", limitMs: 100 });
    },
  );

  test.each(["journal.db", "journal.db-wal"])(
    "a worker that has no descriptor for %s says so, and has it once there is one",
    async (file) => {
      using directory = testDirectory();
      const stateDir = directory.path;
      await (await testWorker({ stateDir })).close();
      {
        await using fault = await failing(process.pid, "openat", "EMFILE", join(stateDir, file));
        expect(await refused(() => testWorker({ stateDir }))).toMatchObject({
          code: "unavailable",
          message: /^the journal [^\n]+$/,
        });
        await fault.met();
      }
      await using worker = await testWorker({ stateDir });
      expect((await finished(worker, run("echo", "later"))).text).toBe("later\n");
    },
  );

  test("a row of the journal that the disk does not give back fails that call; what runs is told and stopped", async () => {
    using directory = testDirectory();
    const stateDir = directory.path;
    {
      mkdirSync(join(stateDir, "jobs"));
      using journal = openJournal(stateDir);
      const ended = { ...JOB, state: "ended", args: ["x".repeat(10_000)] } as const;
      for (let i = 0; i < 20; i++) journal.insert({ ...ended, id: `01cut000000000000000000${10 + i}` }, undefined);
    }
    await using worker = await testWorker({ stateDir });
    const { id } = await startReady(worker, waits);
    const row = "01cut00000000000000000015";
    {
      await using fault = await failing(process.pid, "pread64", "EIO", join(stateDir, "journal.db"));
      // SQLite takes EIO of a read for damage, since it may well be that.
      expect(await refused(() => worker.query(row))).toMatchObject({
        code: "unavailable",
        facts: { reason: "damaged" },
      });
      await fault.met();
      expect(worker.query(id).state).toBe("running");
      expect((await worker.stop(id, { by })).job.ended?.how).toMatchObject({ kind: "stopped", by });
    }
    expect(worker.query(row).args[0]).toHaveLength(10_000);
    expect(worker.query(id).ended?.how).toMatchObject({ kind: "stopped", by });
  });

  test("an fsync that fails refuses and loses nothing: the journal's log of changes is kept until one succeeds", async () => {
    using files = testDirectory();
    const logged: string[] = [];
    let recorded = 0;
    {
      using journal = patient(openJournal(files.path), (_level, message) => logged.push(message));
      journal.insert(JOB, undefined);
      await using fault = await failing(process.pid, "fsync,fdatasync", "EIO");
      for (let pid = 1; pid <= 100; pid++) {
        journal.insert({ ...JOB, id: `b${pid}` }, undefined);
        journal.update({ ...JOB, args: [String(pid).repeat(40_000)], pid }, () => (recorded = pid));
        await setImmediate(); // what strace says is read
      }
      await fault.met();
      expect([recorded, ...logged]).toEqual([100]);
    }
    using journal = openJournal(files.path);
    expect(journal.find("a")?.job.pid).toBe(100);
    expect(journal.list({ before: 1000, limit: 1000, keep: () => true }).records).toHaveLength(101);
  });
});

describe("on a full disk", unless(noMounts), () => {
  describe.each(disks)("of %s", (_name, disk, bytes) => {
    test.each(modes)(
      "%s: no start, but every stop, end, query and stream; and all is recorded when there is room",
      async (_mode, options) => {
        using files = testDirectory();
        using small = disk(join(files.path, "disk"), bytes);
        const stateDir = join(small.path, "state");
        const gate = join(files.path, "gate");
        await using worker = await testWorker({ ...options, stateDir });
        const earlier = await finished(worker, sh("echo earlier"));
        const stopped = await startReady(worker, waits);
        const ends = await startReady(worker, sh('echo ready; until [ -e "$0" ]; do sleep 0.01; done; exit 5', gate));
        const goesOn = await startReady(worker, waits);
        const traces = worker.traces().toSorted();
        small.fill();

        expect(await refused(() => worker.start(run("true")))).toMatchObject({
          code: "exhausted",
          message: /full|ENOSPC/,
        });
        expect(await refused(() => worker.start({ ...run("true"), requestId: "r" }))).toMatchObject({
          code: "exhausted",
        });
        expect(worker.traces().toSorted()).toEqual(traces);
        const { job } = await worker.stop(stopped.id, { by });
        expect(job.ended).toMatchObject({ how: { kind: "stopped", by }, signal: 15 });
        open(gate);
        const ended = await worker.wait(ends.id);
        expect(ended.ended).toMatchObject({ how: { kind: "exited", code: 5 } });
        expect(worker.query(ends.id)).toEqual(ended);
        expect(await worker.stop(ends.id, { by })).toEqual({ job: ended, killed: 0 });
        expect(worker.list({ states: ["ended"], limit: 10 }).jobs.map(({ id }) => id)).toEqual([
          ends.id,
          stopped.id,
          earlier.id,
        ]);
        expect(worker.list({ states: ["running"], limit: 10 }).jobs.map(({ id }) => id)).toEqual([goesOn.id]);
        expect((await readAll(worker.stream(ends.id, { follow: true }))).text).toBe("ready\n");

        await worker.close();
        small.fill(); // with what the closing gave back
        await using again = await testWorker({ ...options, stateDir });
        expect((await again.wait(stopped.id)).ended).toMatchObject({ how: { kind: "stopped" }, signal: 15 });
        expect(await again.wait(ends.id)).toMatchObject({
          ended: ended.ended,
          endedAt: ended.endedAt,
          output: ended.output,
        });
        expect(again.query(goesOn.id)).toMatchObject({ state: "running", pid: goesOn.pid });

        small.empty();
        await finished(again, sh("echo later"));
        await again.stop(goesOn.id, { by });
        await until("all is recorded", () => !again.traces().some((trace) => trace.startsWith("cgroup:")));
        await again.close();
        using journal = openJournal(stateDir);
        expect(journal.alive()).toEqual([]);
        expect(journal.find(ends.id)?.job).toMatchObject({ ended: ended.ended, endedAt: ended.endedAt });
        expect(readdirSync(join(stateDir, "jobs", ".spares"))).toEqual([]);
      },
    );
  });

  test.each(disks)("of %s a daemon starts that comes after one that was killed", async (_name, disk, bytes) => {
    using files = testDirectory();
    using small = disk(join(files.path, "disk"), bytes);
    const stateDir = join(small.path, "state");
    await using daemon = await testDaemon({ stateDir });
    const { id, pid } = await daemon.start(waits);
    await daemon.kill();
    small.fill();
    await using worker = await testWorker({ stateDir });
    await until("it runs", () => worker.query(id).state === "running");
    expect(worker.query(id).pid).toBe(pid);
    expect((await worker.stop(id, { by })).job.ended).toMatchObject({ how: { kind: "stopped", by } });
    small.empty();
    await until("it is recorded", () => !worker.traces().some((trace) => trace.startsWith("cgroup:")));
  });

  test.each(kept.length > 0 ? kept : limits)(
    "an update of a limit (%s) is in force and told, also by the next daemon, and recorded when there is room",
    unless(kept.length > 0 ? undefined : "this host has neither the memory nor the pids controller"),
    async (_controller, file, resourcesOf) => {
      using files = testDirectory();
      using small = smallDisk(join(files.path, "disk"), 4 * MiB);
      const stateDir = join(small.path, "state");
      await using worker = await testWorker({ stateDir });
      const { id } = (await worker.start({ ...waits, resources: resourcesOf(4n) })).job;
      const inKernel = (): string => readFileSync(join(worker.cgroup ?? "", id, file), "utf8").trim();
      const before = inKernel();
      small.fill();
      const updated = await worker.update(id, resourcesOf(8n));
      expect(updated.resources).toEqual(resourcesOf(8n));
      expect(inKernel()).not.toBe(before);
      for (const job of [updated, worker.query(id)]) expect(job.limits.get(file)).toBe(inKernel());
      await worker.close();
      await using again = await testWorker({ stateDir });
      expect(again.query(id).limits.get(file)).toBe(inKernel());
      await again.update(id, resourcesOf(6n));
      small.empty();
      // The journal that was closed may have left room for a record.
      const told = (what: string): number => again.logged.filter((line) => line.includes(what)).length;
      await until(
        "it is recorded",
        () => told("the journal cannot be written") === told("the journal is written again"),
      );
      await again.close();
      await using last = await testWorker({ stateDir });
      expect(last.query(id).resources).toEqual(resourcesOf(6n));
      expect(last.query(id).limits.get(file)).toBe(inKernel());
    },
  );

  test("the journal's transactions fail one by one, and what was kept is written in time by itself", async () => {
    using files = testDirectory();
    using small = smallDisk(join(files.path, "disk"), MiB);
    const logged: string[] = [];
    using journal = patient(openJournal(small.path), (level, message) => logged.push(`${level}: ${message}`));
    journal.insert(JOB, "request");
    journal.insert({ ...JOB, id: "b" }, undefined);
    small.fill();
    const recorded: string[] = [];
    for (let i = 0; i < 20; i++) expect(() => journal.insert({ ...JOB, id: `no-${i}` }, undefined)).toThrow(/full/);
    for (let pid = 1; pid <= 20; pid++) journal.update({ ...JOB, id: "b", pid }, () => recorded.push(`b ${pid}`));
    journal.stopping("b", by);
    journal.remove("a");
    expect(journal.find("a")).toBeUndefined();
    expect(journal.findRequest(by, "request")).toBeUndefined();
    expect(journal.list({ before: 1000, limit: 10, keep: () => true }).records.map(({ job }) => job.id)).toEqual(["b"]);
    expect(recorded).toEqual([]);
    expect(journal.waiting()).toBe(3);
    expect(logged).toHaveLength(1);
    small.empty();
    await until("it is written", () => logged.length === 2);
    expect(recorded).toEqual(["b 20"]);
    expect(journal.waiting()).toBe(0);
    expect(journal.find("b")).toMatchObject({ job: { pid: 20 }, stoppedBy: by });
    journal.insert(JOB, "request");
    expect(journal.findRequest(by, "request")?.job.id).toBe("a");
  });

  test("a state directory that nothing can be made in is told in one line, and left as it is", async () => {
    using files = testDirectory();
    using small = smallDisk(join(files.path, "disk"), MiB);
    small.fill();
    expect(await refused(() => testWorker({ stateDir: small.path }))).toMatchObject({
      code: "unavailable",
      message: /^[^\n]*full[^\n]*$/,
    });
    expect(existsSync(join(small.path, "jobs"))).toBe(true);
  });
});

describe("on a disk that turns read-only under its writers", unless(noReadOnly), () => {
  test.each(modes)(
    "%s: no start; jobs go on, and are stopped; ends wait to be recorded, or are lost with their supervisors",
    async (_mode, options) => {
      using files = testDirectory();
      chmodSync(files.path, 0o1777);
      using disk = erringDisk(join(files.path, "disk"), 16 * MiB);
      const stateDir = join(disk.path, "state");
      const [gate, written] = [join(files.path, "gate"), join(files.path, "written")];
      await using worker = await testWorker({ ...options, stateDir });
      const ended = await finished(worker, sh("echo earlier"));
      const script = 'echo ready; until [ -e "$0" ]; do sleep 0.01; done; echo lost; : > "$1"; exec sleep 1000';
      const writes = await startReady(worker, sh(script, gate, written));
      const stopped = await startReady(worker, waits);
      const supervisors = [writes, stopped].map(({ id }) => {
        using log = openLog(worker.directory(id));
        return log.header().started?.supervisor ?? 0;
      });
      await disk.err();
      expect(() => mkdirSync(join(disk.path, "new"))).toThrow("EROFS");

      expect(await refused(() => worker.start(run("true")))).toMatchObject({ code: "exhausted" });
      open(gate);
      await until("it is not held up by what it writes", () => existsSync(written));
      expect(worker.query(writes.id).state).toBe("running");
      expect((await readAll(worker.stream(ended.id, {}))).text).toBe("earlier\n");
      expect((await readAll(worker.stream(writes.id, {}))).text).toBe("ready\n");
      const stopping = worker.stop(stopped.id, { by });
      await until("it is stopped", () => !runs(stopped.pid));
      expect(worker.query(stopped.id).state).toBe("stopping");
      for (const supervisor of supervisors) process.kill(supervisor, "SIGKILL");
      const lost = { kind: "lost", reason: "its supervisor was killed by SIGKILL" };
      expect((await stopping).job.ended?.how).toEqual(lost);
      expect((await worker.wait(writes.id)).ended?.how).toEqual(lost);

      await worker.close();
      await disk.repair();
      await using again = await testWorker({ ...options, stateDir });
      for (const { id } of [writes, stopped])
        expect((await again.wait(id)).ended?.how).toEqual({
          kind: "lost",
          reason: "its supervisor died while no jobsd ran",
        });
      expect(again.query(ended.id).ended).toEqual(ended.ended);
      expect((await finished(again, sh("echo later"))).text).toBe("later\n");
    },
  );
});

test("the journal's log of changes does not grow with their number", () => {
  using files = testDirectory();
  using journal = openJournal(files.path);
  journal.insert(JOB, undefined);
  for (let pid = 0; pid < 10_000; pid++) journal.update({ ...JOB, pid });
  expect(statSync(join(files.path, "journal.db-wal")).size).toBeLessThan(9 * MiB);
});
