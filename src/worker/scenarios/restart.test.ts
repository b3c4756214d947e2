import { readFileSync, existsSync, mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { openHierarchy } from "../cgroup/hierarchy.ts";
import { openJournal } from "../journal/journal.ts";
import {
  childrenOf,
  detaches,
  firstLine,
  modes,
  open,
  outerPid,
  readAll,
  run,
  runs,
  sh,
  startReady,
  supervisorOf,
  testDaemon,
  testDirectory,
  testWorker,
  until,
  waits,
} from "../testing/worker.ts";

const by = "tester";

/** The spawner of a daemon: its child that has a socket and no job. */
async function spawnerOf(pid: number): Promise<number> {
  return until("the spawner runs", () =>
    childrenOf(pid).find((child) => readFileSync(`/proc/${child}/comm`, "utf8").includes("supervisor")),
  );
}

describe.each(modes)("a worker %s that is closed and opened again", (_mode, options) => {
  test("reads a running job's limits from the kernel, with a controller that this host has", async () => {
    await using worker = await testWorker(options);
    const [resources] = [
      ["pids", { pids: { limit: 20n } }] as const,
      ["hugetlb", { hugepageLimits: [{ pageSize: "2MB", limit: 0n }] }] as const,
    ].flatMap(([controller, resources]) =>
      /controllers: ([^;]*)/.exec(worker.host)?.[1]?.split(", ").includes(controller) ? [resources] : [],
    );
    const { job } = await worker.start({ ...waits, ...(resources && { resources }) });
    expect(job.limits.size > 0).toBe(resources !== undefined);
    await worker.close();
    await using again = await testWorker({ ...options, stateDir: worker.stateDir });
    expect(again.query(job.id).limits).toEqual(job.limits);
  });

  test("finds its running jobs unchanged, can stop them, and their output goes on", async () => {
    await using worker = await testWorker(options);
    using files = testDirectory();
    const gate = join(files.path, "gate");
    const { id, pid } = await startReady(worker, {
      ...sh('echo one; until [ -e "$0" ]; do sleep 0.01; done; echo two; exec sleep 1000', gate),
      labels: new Map([["a", "b"]]),
    });
    const before = worker.query(id);
    await worker.close();
    await using again = await testWorker({ ...options, stateDir: worker.stateDir });
    const after = again.query(id);
    expect(after).toMatchObject({
      id,
      pid,
      state: "running",
      labels: before.labels,
      args: before.args,
      owner: before.owner,
      createdAt: before.createdAt,
      output: before.output,
    });
    expect(again.list({ states: ["running"], limit: 10 }).jobs.map((job) => job.id)).toEqual([id]);
    const following = readAll(
      again.stream(id, { position: { kind: "offset", offset: before.output.size }, follow: true }),
    );
    open(gate);
    await until("the second line is there", () => again.query(id).output.size === 8);
    const { job, killed } = await again.stop(id, { by });
    expect(killed).toBe(0);
    expect(job.ended).toMatchObject({ how: { kind: "stopped", by, escalated: false }, signal: 15 });
    expect((await following).text).toBe("two\n");
    expect((await readAll(again.stream(id, {}))).text).toBe("one\ntwo\n");
    expect(runs(pid)).toBe(false);
  });

  test("has the results of jobs that ended meanwhile, and has removed their cgroups", async () => {
    await using worker = await testWorker(options);
    using files = testDirectory();
    const gate = join(files.path, "gate");
    const specs = [
      sh('echo one; until [ -e "$0" ]; do sleep 0.01; done; echo two; exit 3', gate),
      sh('echo one; until [ -e "$0" ]; do sleep 0.01; done; kill -9 $$', gate),
      { ...waits, timeLimitMs: 200 },
    ];
    const started = await Promise.all(specs.map((spec) => startReady(worker, spec)));
    const ended = worker.wait(started[0]?.id ?? "").catch(() => "unavailable");
    await worker.close();
    expect(await ended).toBe("unavailable");
    open(gate);
    await until("all have their exit records", () =>
      started.every(({ id }) => existsSync(join(worker.directory(id), "exit"))),
    );
    await using again = await testWorker({ ...options, stateDir: worker.stateDir });
    const jobs = await Promise.all(started.map(({ id }) => again.wait(id)));
    expect(jobs.map((job) => job.ended)).toEqual([
      { how: { kind: "exited", code: 3 }, exitCode: 3, signal: 0, killed: 0 },
      { how: { kind: "signalled", signal: 9, coreDumped: false }, exitCode: -1, signal: 9, killed: 0 },
      { how: { kind: "timed-out", limitMs: 200 }, exitCode: -1, signal: 15, killed: 0 },
    ]);
    expect(jobs.map(({ pid }) => pid)).toEqual(started.map(({ pid }) => pid));
    for (const job of jobs) {
      expect(job.endedAt?.getTime()).toBeGreaterThanOrEqual(job.startedAt?.getTime() ?? NaN);
      expect(job.usage?.cpuUserUs).toBeGreaterThanOrEqual(0);
    }
    expect((await readAll(again.stream(jobs[0]?.id ?? "", { follow: true }))).text).toBe("one\ntwo\n");
    expect(again.traces().filter((trace) => trace.startsWith("cgroup:"))).toEqual([]);
  });

  test("knows of a job that ended meanwhile its end, how long it ran, and its CPU time", async () => {
    await using worker = await testWorker(options);
    using files = testDirectory();
    const gate = join(files.path, "gate");
    const burns =
      'echo ready; until [ -e "$0" ]; do sleep 0.01; done; i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done';
    const { id } = await startReady(worker, sh(`${burns}; times`, gate));
    await worker.close();
    const opened = Date.now();
    open(gate);
    await until("it has its exit record", () => existsSync(join(worker.directory(id), "exit")));
    const closed = Date.now();
    await using again = await testWorker({ ...options, stateDir: worker.stateDir });
    const { startedAt, endedAt, usage } = await again.wait(id);
    const endedMs = endedAt?.getTime() ?? NaN;
    expect(endedMs).toBeGreaterThanOrEqual(opened);
    expect(endedMs).toBeLessThanOrEqual(closed);
    expect(Math.abs((usage?.elapsedMs ?? NaN) - (endedMs - (startedAt?.getTime() ?? NaN)))).toBeLessThan(50);
    const said = (await readAll(again.stream(id, {}))).text;
    // times(1) tells the CPU time of the shell, and of the children that it waited for.
    const burntMs = [...said.matchAll(/(\d+)m([\d.]+)s/g)].reduce(
      (sum, [, minutes, seconds]) => sum + Number(minutes) * 60_000 + Number(seconds) * 1000,
      0,
    );
    expect(burntMs).toBeGreaterThan(50);
    const toldMs = ((usage?.cpuUserUs ?? NaN) + (usage?.cpuSystemUs ?? NaN)) / 1000;
    expect(Math.abs(toldMs - burntMs)).toBeLessThan(100);
  });

  test("in the middle of a stop knows of the stop, and who asked for it", async () => {
    await using worker = await testWorker(options);
    const { id } = await startReady(worker, sh('trap "" TERM; echo ready; while :; do sleep 0.05; done'));
    const stopping = worker.stop(id, { by: "ada", graceMs: 60_000 }).catch(() => "unavailable");
    await until("it is stopping", () => worker.query(id).state === "stopping");
    await worker.close();
    expect(await stopping).toBe("unavailable");
    await using again = await testWorker({ ...options, stateDir: worker.stateDir });
    expect(again.query(id).state).toBe("stopping");
    expect((await again.stop(id, { by: "bob", graceMs: 0 })).job.ended?.how).toMatchObject({
      kind: "stopped",
      by: "ada",
    });
  });

  test("20 times in a row loses nothing of a job that writes all the while", async () => {
    await using worker = await testWorker(options);
    const { id } = await startReady(worker, sh("echo 0; for i in $(seq 1 50); do echo $i; sleep 0.01; done; exit 9"));
    await worker.close();
    for (let i = 0; i < 20; i++) {
      const between = await testWorker({ ...options, stateDir: worker.stateDir });
      expect(between.query(id).ended?.exitCode ?? 9).toBe(9);
      await between.close();
    }
    await using last = await testWorker({ ...options, stateDir: worker.stateDir });
    expect((await last.wait(id)).ended).toMatchObject({ exitCode: 9 });
    expect((await readAll(last.stream(id, {}))).text).toBe(Array.from({ length: 51 }, (_, i) => `${i}\n`).join(""));
  });
});

describe.each(modes)("after a daemon %s is killed", (_mode, options) => {
  test("its jobs go on; the next daemon finds them, stops them, and has all of their output", async () => {
    using directory = testDirectory();
    using files = testDirectory();
    const gate = join(files.path, "gate");
    await using daemon = await testDaemon({ ...options, stateDir: directory.path });
    const tree = await daemon.start(detaches);
    const writer = await daemon.start(
      sh('until [ -e "$0" ]; do sleep 0.01; done; for i in $(seq 1 20000); do echo $i; done; exit 5', gate),
    );
    const short = await daemon.start(run("true"));
    const spawner = await spawnerOf(daemon.pid);
    await daemon.kill();
    expect(runs(tree.pid)).toBe(true);
    open(gate); // More than a pipe holds: written while there is no daemon.
    await until("the writer has ended", () => existsSync(join(directory.path, "jobs", writer.id, "exit")));
    await until("the spawner is gone with its daemon", () => !runs(spawner));
    await using worker = await testWorker({ ...options, stateDir: directory.path });
    expect((await worker.wait(writer.id)).ended).toMatchObject({ exitCode: 5 });
    expect((await readAll(worker.stream(writer.id, {}))).text).toBe(
      Array.from({ length: 20_000 }, (_, i) => `${i + 1}\n`).join(""),
    );
    expect((await worker.wait(short.id)).ended).toMatchObject({ exitCode: 0 });
    expect(worker.query(tree.id)).toMatchObject({ state: "running", pid: tree.pid });
    const grandchild = outerPid(tree.pid, Number(await firstLine(worker, tree.id)));
    expect(runs(grandchild)).toBe(true);
    expect((await worker.stop(tree.id, { by })).job.ended?.how).toMatchObject({ kind: "stopped", by });
    expect([tree.pid, grandchild].filter(runs)).toEqual([]);
  });

  test("a start under way leaves nothing, or the whole job", async () => {
    using directory = testDirectory();
    await using daemon = await testDaemon({ ...options, stateDir: directory.path });
    const spawner = await spawnerOf(daemon.pid);
    await until("spares are there", () => childrenOf(spawner).length > 0);
    // The start reaches a spare's FIFO, and no further.
    const stopped = [spawner, ...childrenOf(spawner)];
    for (const pid of stopped) process.kill(pid, "SIGSTOP");
    const cut = daemon.start({ ...waits, requestId: "cut" }).catch(() => "cut");
    // Requests are handled in turn: once this one is refused, the other is under way.
    await expect(daemon.start(run(""))).rejects.toThrow("command");
    await daemon.kill();
    const next = testWorker({ ...options, stateDir: directory.path });
    for (const pid of stopped) process.kill(pid, "SIGCONT");
    await using worker = await next;
    const left = worker.list({ limit: 10 }).jobs;
    const needed = new Set(left.map(({ id }) => supervisorOf(worker.directory(id))));
    await until(
      "spawner and spares are gone with their daemon",
      () => !stopped.some((pid) => !needed.has(pid) && runs(pid)),
    );
    if (left.length === 0) expect(worker.traces()).toEqual([]);
    const { job, alreadyStarted } = await worker.start({ ...waits, requestId: "cut" });
    expect(left.map(({ id }) => id)).toEqual(alreadyStarted ? [job.id] : []);
    expect(worker.query(job.id).state).toBe("running");
    expect(await cut).toBe("cut");
  });
});

describe.each(modes)("a start %s that was cut", (_mode, options) => {
  test.each(["before its directory was made", "before its cgroup was made", "before exec"])(
    "%s leaves nothing, and its request id can be used again",
    async (when) => {
      await using worker = await testWorker(options);
      const { job } = await worker.start({ ...waits, requestId: "other" });
      await worker.close();
      const id = "01cut00000000000000000000";
      const directory = join(worker.stateDir, "jobs", id);
      {
        using journal = openJournal(worker.stateDir);
        journal.insert({ ...job, id, state: "starting", pid: 0 }, "cut");
        if (when !== "before its directory was made") mkdirSync(directory, { mode: 0o700 });
        const hierarchy = openHierarchy(`jobs-${journal.instance}`, options.cgroup);
        if (when === "before exec" && hierarchy.kind === "cgroup2") mkdirSync(join(hierarchy.path, id));
      }
      await using again = await testWorker({ ...options, stateDir: worker.stateDir });
      await until("nothing of it is left", () => !again.traces().some((trace) => trace.endsWith(id)));
      expect(again.query(job.id).state).toBe("running");
      expect((await again.start({ ...waits, requestId: "cut" })).alreadyStarted).toBe(false);
    },
  );
});

describe.each(modes)("a job %s whose directory was removed", (_mode, options) => {
  test.each(["while a worker ran", "while no worker ran"])("%s is lost for that reason, and ended", async (when) => {
    await using worker = await testWorker(options);
    const { id, pid } = await startReady(worker, waits);
    const supervisor = supervisorOf(worker.directory(id));
    await worker.close();
    if (when === "while no worker ran") rmSync(worker.directory(id), { recursive: true });
    await using again = await testWorker({ ...options, stateDir: worker.stateDir });
    if (when === "while a worker ran") {
      rmSync(worker.directory(id), { recursive: true });
      process.kill(supervisor, "SIGKILL");
    }
    expect((await again.wait(id)).ended?.how).toEqual({ kind: "lost", reason: "its directory is gone" });
    await until("it has ended", () => !runs(pid));
  });
});
