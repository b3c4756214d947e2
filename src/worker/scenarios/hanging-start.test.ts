import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, copyFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import type { Started } from "../jobs/start.ts";
import { finished, modes, refused, run, testDirectory, testWorker, until } from "../testing/worker.ts";

/* A job's program may lie on a file system that does not answer. A lease on the program stands for that here. */

interface Held extends Disposable {
  readonly program: string;
}

/** A program that nobody can open until this is disposed. */
async function heldProgram(directory: string): Promise<Held> {
  const [program, leases] = [join(directory, "program"), join(directory, "leases")];
  copyFileSync("/bin/true", program);
  chmodSync(program, 0o755);
  execFileSync("cc", ["-o", leases, join(import.meta.dirname, "../../supervisor/programs/leases.c")]);
  const holder: ChildProcess = spawn(leases, [program], { stdio: ["ignore", "pipe", "inherit"] });
  if (holder.stdout) await once(holder.stdout, "data");
  return { program, [Symbol.dispose]: () => void holder.kill() };
}

describe.each(modes)("%s, a start whose program cannot be opened", (_mode, options) => {
  test("fails when its time limit passes", async () => {
    using files = testDirectory();
    using held = await heldProgram(files.path);
    await using worker = await testWorker(options);
    const start = await refused(() => worker.start({ ...run(held.program), timeLimitMs: 300 }));
    expect(start).toMatchObject({ code: "unavailable", facts: { stage: "exec", errno: "ETIMEDOUT" } });
    expect(worker.traces()).toEqual([]);
  });

  test("holds up no other start, and is ended by a stop", async () => {
    using files = testDirectory();
    using held = await heldProgram(files.path);
    await using worker = await testWorker(options);
    const start = refused(() => worker.start(run(held.program)));
    await until("it is being started", () => worker.list({ states: ["starting"], limit: 1 }).jobs.length === 1);
    const [job] = worker.list({ states: ["starting"], limit: 1 }).jobs;
    for (let i = 0; i < 8; i++)
      expect((await finished(worker, run("true"))).ended).toMatchObject({ how: { kind: "exited", code: 0 } });
    expect(worker.query(job?.id ?? "")).toMatchObject({ state: "starting" });
    const stop = refused(() => worker.stop(job?.id ?? "", { by: "tester", graceMs: 0 }));
    expect(await start).toMatchObject({ code: "unavailable", facts: { stage: "exec", errno: "ECANCELED" } });
    expect(await stop).toMatchObject({ code: "not-found" });
    expect(worker.list({ states: ["starting", "running"], limit: 1 }).jobs).toEqual([]);
  });

  test("is ended when the call that asked for it is given up", async () => {
    using files = testDirectory();
    using held = await heldProgram(files.path);
    await using worker = await testWorker(options);
    const given = AbortSignal.timeout(100);
    expect(await refused(() => worker.start(run(held.program), given))).toMatchObject({
      code: "unavailable",
      facts: { stage: "exec", errno: "ECANCELED" },
    });
    expect(worker.traces()).toEqual([]);
  });

  test("goes on while one call is left that asked for it, by its request id", async () => {
    using files = testDirectory();
    await using worker = await testWorker(options);
    const up = new AbortController();
    let start: Promise<Started>;
    let again: Promise<Started>;
    {
      using held = await heldProgram(files.path);
      const spec = { ...run(held.program), requestId: "once" };
      start = worker.start(spec, up.signal);
      await until("it is being started", () => worker.list({ states: ["starting"], limit: 1 }).jobs.length === 1);
      up.abort();
      again = worker.start(spec, new AbortController().signal);
      // One that nobody waits for would be killed after a second.
      await delay(2000);
    }
    const [one, other] = await Promise.all([start, again]);
    expect(other).toEqual({ job: one.job, alreadyStarted: true });
    expect(await worker.wait(one.job.id)).toMatchObject({ ended: { how: { kind: "exited", code: 0 } } });
  });

  test("does not keep the worker from closing", async () => {
    using files = testDirectory();
    await using worker = await testWorker(options);
    {
      using held = await heldProgram(files.path);
      void worker.start(run(held.program));
      await until("it is being started", () => worker.list({ states: ["starting"], limit: 1 }).jobs.length === 1);
      const began = performance.now();
      await worker.close();
      expect(performance.now() - began).toBeLessThan(20_000);
    }
  });
});
