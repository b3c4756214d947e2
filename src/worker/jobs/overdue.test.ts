import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import {
  closeSync,
  constants as flags,
  openSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { needsRoot } from "../../testing/root.ts";
import { statOf } from "../../testing/processes.ts";
import type { JobSpec } from "../model/job.ts";
import type { WorkerOptions } from "../model/options.ts";
import {
  childrenOf,
  finished,
  ignoresTerm,
  modes,
  run,
  runs,
  startReady,
  supervisorOf,
  testDirectory,
  testWorker,
  type TestWorker,
  until,
  waits,
} from "../testing/worker.ts";

const by = "tester";
/** What a stop may take beyond its grace period: two seconds, and what a machine that is busy with other tests needs. */
const LATE_MS = 2000 + 1500;

const kinds: readonly (readonly [string, Partial<WorkerOptions>])[] = modes.flatMap(([mode, options]) => [
  [mode, options] as const,
  [`${mode}, without a pid namespace`, { ...options, isolationOff: ["pid"] }] as const,
]);

/** Starts a job of two processes, and waits until both run. */
async function ready(worker: TestWorker, spec: JobSpec): Promise<{ readonly id: string; readonly pid: number }> {
  const job = await startReady(worker, spec);
  await until("its child is there", () => childrenOf(job.pid).length === 1);
  return job;
}

/** Ways in which a supervisor can become unreachable. Each gets the job's directory and the `control` in it. */
const breaks: Readonly<Record<string, (directory: string, control: string) => void>> = {
  "its FIFO is gone": (_directory, control) => rmSync(control),
  "a file is in its FIFO's place": (_directory, control) => {
    rmSync(control);
    writeFileSync(control, "");
  },
  "a link to a file is in its FIFO's place": (directory, control) => {
    rmSync(control);
    symlinkSync(join(directory, "output"), control);
  },
  "a FIFO that nobody reads is in its FIFO's place": (_directory, control) => {
    rmSync(control);
    execFileSync("mkfifo", [control]);
  },
  "somebody else reads its FIFO": (_directory, control) => {
    rmSync(control);
    execFileSync("mkfifo", [control]);
    const reader = spawn("sleep", ["1000"], { stdio: [openSync(control, "r+"), "ignore", "ignore"] });
    onTestFinished(() => void reader.kill());
  },
};

describe.each(kinds)("%s", (_kind, options) => {
  test.each(Object.entries(breaks))(
    "a stop ends a job whose supervisor does not hear it because %s, and says so",
    async (_what, damage) => {
      await using worker = await testWorker(options);
      const { id, pid } = await ready(worker, ignoresTerm);
      damage(worker.directory(id), join(worker.directory(id), "control"));
      const before = performance.now();
      const { job, killed } = await worker.stop(id, { by, graceMs: 300 });
      expect(performance.now() - before).toBeLessThan(300 + LATE_MS);
      expect(job).toMatchObject({
        state: "ended",
        ended: { how: { kind: "stopped", by, escalated: true }, exitCode: -1, signal: 9, killed: 2 },
      });
      expect(job.warnings.at(-1)).toMatch(/^its supervisor .*: the daemon stops it$/);
      expect(killed).toBe(2);
      expect(worker.logged).toContain("warn: a job is stopped without its supervisor");
      expect(runs(pid)).toBe(false);
      expect((await worker.stop(id, { by })).job).toEqual(job);
    },
  );

  test.each([
    ["removed", (directory: string) => rmSync(directory, { recursive: true })],
    ["renamed", (directory: string) => renameSync(directory, join(directory, "../.renamed"))],
  ])("a job whose directory was %s is lost when a stop has ended it", async (_what, damage) => {
    await using worker = await testWorker({ ...options, maxJobs: 1 });
    const { id, pid } = await ready(worker, ignoresTerm);
    damage(worker.directory(id));
    const before = performance.now();
    const { job } = await worker.stop(id, { by, graceMs: 0 });
    expect(performance.now() - before).toBeLessThan(LATE_MS);
    expect(job.ended?.how).toEqual({ kind: "lost", reason: "its directory is gone" });
    expect(runs(pid)).toBe(false);
    expect((await finished(worker, run("echo", "next"))).text).toBe("next\n");
  });

  test("a job gets the signal of a stop although its supervisor cannot be reached", async () => {
    await using worker = await testWorker(options);
    const { id } = await startReady(worker, waits);
    rmSync(join(worker.directory(id), "control"));
    const { job } = await worker.stop(id, { by, graceMs: 60_000 });
    expect(job.ended).toMatchObject({ how: { kind: "stopped", by, escalated: false }, signal: 15, killed: 0 });
  });

  test("a stop continues a stopped supervisor of an earlier worker, which then ends its job as usual", async () => {
    await using worker = await testWorker(options);
    const { id } = await ready(worker, ignoresTerm);
    await worker.close();
    await using again = await testWorker({ ...options, stateDir: worker.stateDir });
    const supervisor = supervisorOf(worker.directory(id));
    process.kill(supervisor, "SIGSTOP");
    await until("it is stopped", () => statOf(supervisor)?.[0] === "T");
    const { job, killed } = await again.stop(id, { by, graceMs: 100 });
    expect(job.ended?.how).toEqual({ kind: "stopped", by, escalated: true });
    expect(killed).toBe(2);
    expect(job.warnings.join()).not.toContain("the daemon stops it");
  });

  test("a stop is answered although the spawner, which reports ends, is stopped", async () => {
    await using worker = await testWorker(options);
    const { id } = await ready(worker, ignoresTerm);
    const spawner = Number(statOf(supervisorOf(worker.directory(id)))?.[1]);
    process.kill(spawner, "SIGSTOP");
    try {
      const { job, killed } = await worker.stop(id, { by, graceMs: 0 });
      expect(job.ended?.how).toEqual({ kind: "stopped", by, escalated: false });
      expect(killed).toBe(2);
    } finally {
      process.kill(spawner, "SIGCONT");
    }
  });

  // Only root can do that: a supervisor cannot be traced by its own user.
  test("a supervisor that does not go on is killed, its job lost and its place free", needsRoot, async () => {
    await using worker = await testWorker({ ...options, maxJobs: 1 });
    using files = testDirectory();
    const { id, pid } = await ready(worker, ignoresTerm);
    const supervisor = supervisorOf(worker.directory(id));
    const program = join(files.path, "holds");
    execFileSync("cc", ["-o", program, join(import.meta.dirname, "../../supervisor/programs/holds.c")]);
    const holder = spawn(program, [String(supervisor)], { stdio: ["ignore", "pipe", "inherit"] });
    await once(holder.stdout, "data");
    // More orders than its FIFO holds.
    const control = openSync(join(worker.directory(id), "control"), flags.O_WRONLY | flags.O_NONBLOCK);
    expect(() => {
      for (;;) writeSync(control, Buffer.alloc(4096));
    }).toThrow("EAGAIN");
    closeSync(control);
    const before = performance.now();
    const stopping = worker.stop(id, { by, graceMs: 0 });
    await until("its supervisor is killed", () => worker.logged.some((line) => line.includes("does not answer")));
    holder.kill("SIGKILL");
    const { job } = await stopping;
    expect(performance.now() - before).toBeLessThan(LATE_MS);
    expect(job.ended).toMatchObject({
      how: { kind: "lost", reason: `its supervisor did not answer when ${by} stopped it` },
      killed: 2,
    });
    expect([runs(pid), runs(supervisor)]).toEqual([false, false]);
    expect((await finished(worker, run("echo", "next"))).text).toBe("next\n");
  });

  test("a supervisor that was stopped while no worker ran is continued by the next one, and keeps its time limit", async () => {
    await using worker = await testWorker(options);
    const { id } = await startReady(worker, { ...waits, timeLimitMs: 2000 });
    await worker.close();
    const supervisor = supervisorOf(worker.directory(id));
    process.kill(supervisor, "SIGSTOP");
    await until("it is stopped", () => statOf(supervisor)?.[0] === "T");
    await using again = await testWorker({ ...options, stateDir: worker.stateDir });
    expect((await again.wait(id)).ended?.how).toEqual({ kind: "timed-out", limitMs: 2000 });
  });

  test("a job whose FIFO was removed while no worker ran is lost for that reason, and is removed with its supervisor", async () => {
    await using worker = await testWorker(options);
    const { id, pid } = await ready(worker, ignoresTerm);
    await worker.close();
    const supervisor = supervisorOf(worker.directory(id));
    rmSync(join(worker.directory(id), "control"));
    await using again = await testWorker({ ...options, stateDir: worker.stateDir });
    expect((await again.wait(id)).ended?.how).toEqual({ kind: "lost", reason: "its control is gone" });
    await until("nothing of it runs", () => !runs(pid) && !runs(supervisor));
  });

  test.each([
    ["write its record", "fsize", "SIGKILL", "EFBIG"],
    ["watch its job", "nofile", "SIGTERM", "EINVAL"],
  ] as const)(
    "a job whose supervisor cannot %s is lost for that reason, and its place is free",
    async (_, limit, signal, errno) => {
      await using worker = await testWorker({ ...options, maxJobs: 1 });
      const { id, pid } = await startReady(
        worker,
        run("sh", "-c", "trap 'echo; exec sleep 1000' TERM; echo ready; sleep 1000 & wait"),
      );
      execFileSync("prlimit", ["--pid", String(supervisorOf(worker.directory(id))), `--${limit}=0`]);
      process.kill(pid, signal);
      const reason = `its supervisor ended without an exit record (${errno})`;
      expect((await worker.wait(id)).ended?.how).toEqual({ kind: "lost", reason });
      expect((await finished(worker, run("echo", "next"))).text).toBe("next\n");
    },
  );
});
