import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync, closeSync, openSync, writeSync } from "node:fs";
import { constants, tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { order } from "../supervisor/control.ts";
import { killTree, nowMs, thisBoot } from "../system/process.ts";
import {
  changeRecords,
  childrenOf,
  detaches,
  finished,
  ignoresTerm,
  modes,
  outerPid,
  readAll,
  run,
  runs,
  sh,
  startReady,
  supervisorOf,
  testDirectory,
  testWorker,
  until,
  waits,
} from "../testing/worker.ts";

const by = "tester";

describe.each(modes)("when processes die that must not %s:", (_mode, options) => {
  test("a killed supervisor ends its job, which is then lost", async () => {
    await using worker = await testWorker(options);
    const { id, pid, line } = await startReady(worker, detaches);
    const grandchild = outerPid(pid, Number(line));
    process.kill(supervisorOf(worker.directory(id)), "SIGKILL");
    const job = await worker.wait(id);
    expect(job).toMatchObject({
      state: "ended",
      pid,
      ended: { how: { kind: "lost", reason: "its supervisor was killed by SIGKILL" }, exitCode: -1, signal: 0 },
      output: { size: line.length + 1 },
    });
    expect(worker.query(id)).toEqual(job);
    await until("its main process is gone", () => !runs(pid));
    if (worker.cgroup !== undefined) expect(worker.traces()).not.toContain(`cgroup:${id}`);
    await until("its grandchild is gone", () => !runs(grandchild));
    expect((await readAll(worker.stream(id, { follow: true }))).text).toBe(`${line}\n`);
  });

  test.each([{ off: [] }, { off: ["pid"] }, { off: ["mount", "pid"] }] as const)(
    "no process whose first thread has ended outlives a killed supervisor, with $off switched off",
    async ({ off: isolationOff }) => {
      await using worker = await testWorker({ ...options, isolationOff });
      using files = testDirectory();
      const program = join(files.path, "hides");
      const source = join(import.meta.dirname, "../../supervisor/programs/hides.c");
      execFileSync("cc", ["-pthread", "-o", program, source]);
      const { id, pid, line } = await startReady(worker, run(program, "thread", "waits"));
      const inner = Number(line.split(" ")[1]);
      const hidden = isolationOff.length === 0 ? outerPid(pid, inner) : inner;
      expect(runs(hidden)).toBe(true);
      process.kill(supervisorOf(worker.directory(id)), "SIGKILL");
      expect((await worker.wait(id)).ended?.how.kind).toBe("lost");
      await until("nothing of it runs", () => !runs(pid) && !runs(hidden));
    },
  );

  test("a killed supervisor ends its job when that was started by an earlier worker, too", async () => {
    await using worker = await testWorker(options);
    const { id, pid, line } = await startReady(worker, detaches);
    const grandchild = outerPid(pid, Number(line));
    await worker.close();
    await using again = await testWorker({ ...options, stateDir: worker.stateDir });
    process.kill(supervisorOf(worker.directory(id)), "SIGKILL");
    expect(await again.wait(id)).toMatchObject({
      state: "ended",
      pid,
      // Only its parent learns which signal it was.
      ended: { how: { kind: "lost", reason: "its supervisor ended without a record" }, exitCode: -1, signal: 0 },
      output: { size: line.length + 1 },
    });
    await until("nothing of it runs", () => !runs(pid) && !runs(grandchild));
    expect(again.traces().filter((trace) => trace.startsWith("cgroup:"))).toEqual([]);
  });

  test("a supervisor that is killed while no worker runs ends its job, which is then lost", async () => {
    await using worker = await testWorker(options);
    const { id, pid } = await startReady(worker, waits);
    await worker.close();
    process.kill(supervisorOf(worker.directory(id)), "SIGKILL");
    await using again = await testWorker({ ...options, stateDir: worker.stateDir });
    expect((await again.wait(id)).ended?.how).toEqual({
      kind: "lost",
      reason: "its supervisor died while no jobsd ran",
    });
    await until("its main process is gone", () => !runs(pid));
    expect(again.traces().filter((trace) => trace.startsWith("cgroup:"))).toEqual([]);
  });

  test("a killed spawner is replaced: ends of running jobs are noticed, stops work, and new jobs start", async () => {
    await using worker = await testWorker(options);
    const [first, second] = [await startReady(worker, waits), await startReady(worker, waits)];
    const spawners = childrenOf(process.pid).filter((pid) =>
      readFileSync(`/proc/${pid}/comm`, "utf8").includes("supervisor"),
    );
    expect(spawners).toHaveLength(1);
    const [spawner = 0] = spawners;
    process.kill(spawner, "SIGKILL");
    await until("a new one is there", () =>
      childrenOf(process.pid).some(
        (pid) => pid !== spawner && runs(pid) && readFileSync(`/proc/${pid}/comm`, "utf8").includes("supervisor"),
      ),
    );
    expect(worker.logged.filter((line) => line.startsWith("error: "))).toEqual([expect.stringContaining("SIGKILL")]);
    expect(worker.query(first.id).state).toBe("running");
    expect((await worker.stop(first.id, { by })).job.ended?.how.kind).toBe("stopped");
    process.kill(second.pid, "SIGKILL");
    expect((await worker.wait(second.id)).ended?.how).toMatchObject({ kind: "signalled", signal: 9 });
    expect((await finished(worker, run("echo", "new"))).text).toBe("new\n");
  });
});

test("the supervisor's record tells who stopped a job when no daemon could record it", async () => {
  await using worker = await testWorker();
  const [one, other] = [await startReady(worker, ignoresTerm), await startReady(worker, ignoresTerm)];
  await worker.close();
  const name = "Zoë of CI, 100 % ".repeat(5);
  order(worker.directory(one.id), constants.signals.SIGTERM, 60_000, name);
  order(worker.directory(one.id), constants.signals.SIGKILL, 0, "another");
  order(worker.directory(other.id), constants.signals.SIGKILL, 0, "n".repeat(5000));
  await using again = await testWorker({ stateDir: worker.stateDir });
  expect((await again.wait(one.id)).ended?.how).toEqual({ kind: "stopped", by: name, escalated: true });
  expect((await again.wait(other.id)).ended?.how).toMatchObject({ kind: "stopped", by: "" });
});

describe("when a job has neither a cgroup nor a pid namespace", () => {
  const bare = { cgroup: tmpdir(), isolationOff: ["mount", "pid"] } as const;

  test("all its processes end with a killed supervisor, whatever their session", async () => {
    await using worker = await testWorker(bare);
    const { id, pid, line } = await startReady(worker, sh("sleep 1000 & echo $!; exec sleep 1000"));
    process.kill(supervisorOf(worker.directory(id)), "SIGKILL");
    expect((await worker.wait(id)).ended?.how.kind).toBe("lost");
    await until("nothing of it runs", () => !runs(pid) && !runs(Number(line)));
  });

  test("all its processes end with a killed supervisor of an earlier worker", async () => {
    await using worker = await testWorker(bare);
    const { id, pid, line } = await startReady(worker, sh("sleep 1000 & echo $!; exec sleep 1000"));
    await worker.close();
    await using again = await testWorker({ ...bare, stateDir: worker.stateDir });
    process.kill(supervisorOf(worker.directory(id)), "SIGKILL");
    expect((await again.wait(id)).ended?.how).toEqual({
      kind: "lost",
      reason: "its supervisor ended without a record",
    });
    await until("nothing of it runs", () => !runs(pid) && !runs(Number(line)));
  });

  test("its main process is recognised by having run when the start was reported", async () => {
    const main = spawn("sleep", ["1000"], { detached: true });
    await once(main, "spawn");
    const pid = main.pid ?? 0;
    killTree({ pid, born: undefined, startedMs: undefined }, thisBoot());
    killTree({ pid, born: undefined, startedMs: nowMs() - 1000 }, thisBoot());
    expect(runs(pid)).toBe(true);
    killTree({ pid, born: undefined, startedMs: nowMs() }, thisBoot());
    await until("it is gone", () => !runs(pid));
  });

  test("another process that has got its pid is left alone", async () => {
    await using worker = await testWorker(bare);
    const { id, pid } = await startReady(worker, waits);
    await worker.close();
    process.kill(supervisorOf(worker.directory(id)), "SIGKILL");
    await until("its main process is gone", () => !runs(pid));
    const stranger = spawn("sleep", ["1000"], { detached: true });
    const theirs = stranger.pid ?? 0;
    try {
      // As if the kernel had reused the pid.
      changeRecords(worker.stateDir, "UPDATE jobs SET job = json_set(job, '$.pid', ?)", theirs);
      const index = openSync(join(worker.directory(id), "index"), "r+");
      const number = Buffer.alloc(4);
      number.writeInt32LE(theirs);
      writeSync(index, number, 0, 4, 48);
      closeSync(index);
      await using again = await testWorker({ ...bare, stateDir: worker.stateDir });
      expect((await again.wait(id)).pid).toBe(theirs);
      expect(runs(theirs)).toBe(true);
    } finally {
      stranger.kill("SIGKILL");
    }
  });
});
