import { join } from "node:path";
import { describe, expect, test } from "vitest";
import {
  finished,
  firstLine,
  modes,
  open,
  outerPid,
  refused,
  run,
  runs,
  sh,
  startReady,
  testDirectory,
  testWorker,
  waits,
} from "../testing/worker.ts";

const by = "tester";

describe.each(modes)("when the main process of a job %s ends,", (_mode, options) => {
  test("the job ends: processes that are left are killed and counted, and the main process's result stays", async () => {
    await using worker = await testWorker(options);
    using files = testDirectory();
    const gate = join(files.path, "gate");
    const { job } = await worker.start(
      sh('setsid sleep 1000 & sleep 1000 & echo $!; until [ -e "$0" ]; do sleep 0.01; done; exit 6', gate),
    );
    const sleeper = outerPid(job.pid, Number(await firstLine(worker, job.id)));
    open(gate);
    const { ended } = await worker.wait(job.id);
    expect(ended).toEqual({ how: { kind: "exited", code: 6 }, exitCode: 6, signal: 0, killed: 2 });
    expect(runs(sleeper)).toBe(false);
  });

  test("all output from before is kept, although a grandchild holds the pipes", async () => {
    await using worker = await testWorker(options);
    const { text, ended } = await finished(
      worker,
      sh("setsid sleep 1000 & head -c 300000 /dev/zero | tr '\\0' x; exit 0"),
    );
    expect(text).toBe("x".repeat(300_000));
    expect(ended).toMatchObject({ exitCode: 0, killed: 1 });
  });
});

describe.each(modes)("a time limit %s", (_mode, options) => {
  test("ends a job that runs longer, and the job says so", async () => {
    await using worker = await testWorker(options);
    const job = await finished(worker, { ...waits, timeLimitMs: 100 });
    expect(job.ended).toEqual({ how: { kind: "timed-out", limitMs: 100 }, exitCode: -1, signal: 15, killed: 0 });
    expect(job.usage?.elapsedMs).toBeGreaterThanOrEqual(100);
  });

  test("does nothing to a job that ends earlier; a stop before the limit counts as a stop", async () => {
    await using worker = await testWorker(options);
    expect((await finished(worker, { ...run("true"), timeLimitMs: 60_000 })).ended?.how).toEqual({
      kind: "exited",
      code: 0,
    });
    const { id } = await startReady(worker, { ...waits, timeLimitMs: 60_000 });
    expect((await worker.stop(id, { by })).job.ended?.how).toMatchObject({ kind: "stopped" });
  });
});

describe("wait", () => {
  test("can be given up, and then the job goes on", async () => {
    await using worker = await testWorker();
    const { id } = await startReady(worker, waits);
    const abort = new AbortController();
    const waiting = refused(() => worker.wait(id, abort.signal));
    abort.abort();
    expect(await waiting).toMatchObject({ code: "unavailable" });
    expect(await refused(() => worker.wait(id, abort.signal))).toMatchObject({ code: "unavailable" });
    expect(worker.query(id).state).toBe("running");
  });
});
