import { describe, expect, test } from "vitest";
import {
  detaches,
  finished,
  ignoresTerm,
  modes,
  outerPid,
  readAll,
  refused,
  run,
  runs,
  sh,
  startReady,
  testWorker,
  until,
  waits,
} from "../testing/worker.ts";

const by = "tester";

describe.each(modes)("stop %s", (_mode, options) => {
  test("ends a job with SIGTERM, and the job says who stopped it", async () => {
    await using worker = await testWorker(options);
    const { id, pid } = await startReady(worker, waits);
    const { job, killed } = await worker.stop(id, { by: "ada" });
    expect(killed).toBe(0);
    expect(job).toMatchObject({
      state: "ended",
      ended: { how: { kind: "stopped", by: "ada", escalated: false }, exitCode: -1, signal: 15, killed: 0 },
    });
    expect(worker.query(id)).toEqual(job);
    expect(runs(pid)).toBe(false);
  });

  test("waits for the grace period, and a job that ends within it keeps its own exit code", async () => {
    await using worker = await testWorker(options);
    const { id } = await startReady(
      worker,
      sh('trap "echo bye; exit 4" TERM; echo ready; while :; do sleep 0.01; done'),
    );
    const { job } = await worker.stop(id, { by });
    expect(job.ended).toEqual({ how: { kind: "stopped", by, escalated: false }, exitCode: 4, signal: 0, killed: 0 });
    expect((await readAll(worker.stream(id, { source: "stdout" }))).text).toBe("ready\nbye\n");
  });

  test("kills what ignores SIGTERM after the grace period, and counts it", async () => {
    await using worker = await testWorker(options);
    const { id, pid } = await startReady(worker, ignoresTerm);
    const { job, killed } = await worker.stop(id, { by, graceMs: 50 });
    // The shell and perhaps its sleep, which SIGTERM may have ended.
    expect(job.ended).toMatchObject({ how: { kind: "stopped", by, escalated: true }, exitCode: -1, signal: 9, killed });
    expect([1, 2]).toContain(killed);
    expect(job.usage?.elapsedMs).toBeGreaterThanOrEqual(50);
    expect(runs(pid)).toBe(false);
  });

  test("sends the signal that was asked for, and kills at once with a grace period of zero or with SIGKILL", async () => {
    await using worker = await testWorker(options);
    const hup = await startReady(
      worker,
      sh('trap "exit 5" HUP; trap "" TERM; echo ready; while :; do sleep 0.01; done'),
    );
    expect((await worker.stop(hup.id, { by, signal: 1 })).job.ended).toMatchObject({ exitCode: 5, killed: 0 });
    for (const how of [{ graceMs: 0 }, { signal: 9 }]) {
      const { id } = await startReady(worker, sh('trap "" TERM; echo ready; exec sleep 1000'));
      expect(await worker.stop(id, { by, ...how })).toMatchObject({
        killed: 1,
        job: { ended: { signal: 9, killed: 1 } },
      });
    }
  });

  test("also ends grandchildren in sessions of their own", async () => {
    await using worker = await testWorker(options);
    const { id, pid, line } = await startReady(worker, detaches);
    const grandchild = outerPid(pid, Number(line));
    expect(runs(grandchild)).toBe(true);
    await worker.stop(id, { by });
    expect([pid, grandchild].filter(runs)).toEqual([]);
  });

  test("ends stopped processes", async () => {
    await using worker = await testWorker(options);
    const { id, pid } = await startReady(worker, waits);
    process.kill(pid, "SIGSTOP");
    expect((await worker.stop(id, { by })).job.ended).toMatchObject({ signal: 15, killed: 0 });
  });

  test("of an ended job succeeds and changes nothing", async () => {
    await using worker = await testWorker(options);
    const before = await finished(worker, sh("exit 3"));
    const { job, killed } = await worker.stop(before.id, { by });
    expect(killed).toBe(0);
    expect({ ...job, text: "" }).toEqual(before);
  });

  test("a second time may shorten the grace period; the job says that the first caller stopped it", async () => {
    await using worker = await testWorker(options);
    const { id } = await startReady(worker, ignoresTerm);
    const first = worker.stop(id, { by: "ada" });
    await until("it is stopping", () => worker.query(id).state === "stopping");
    expect(worker.list({ states: ["stopping"], limit: 1 }).jobs).toMatchObject([{ id }]);
    const second = await worker.stop(id, { by: "bob", graceMs: 0 });
    expect(await first).toEqual(second);
    expect(second.job.ended?.how).toMatchObject({ kind: "stopped", by: "ada" });
  });

  test("100 times at once ends the job once, and all callers get the same answer", async () => {
    await using worker = await testWorker(options);
    const { id } = await startReady(worker, detaches);
    const stopped = await Promise.all(
      Array.from({ length: 100 }, (_, i) => worker.stop(id, { by: `caller ${i}`, graceMs: 5000 })),
    );
    expect(new Set(stopped.map((answer) => JSON.stringify(answer))).size).toBe(1);
    expect(stopped[0]?.job.ended?.how).toEqual({ kind: "stopped", by: "caller 0", escalated: false });
  });

  test("during a start waits for the start, and then ends the job", async () => {
    await using worker = await testWorker(options);
    const starting = worker.start(waits);
    const [found] = worker.list({ states: ["starting"], limit: 1 }).jobs;
    const stopping = worker.stop(found?.id ?? "", { by });
    const { job } = await starting;
    expect(job.id).toBe(found?.id);
    expect((await stopping).job).toMatchObject({
      id: job.id,
      pid: job.pid,
      state: "ended",
      ended: { how: { kind: "stopped" } },
    });
  });

  test("during a start that fails finds no job, as it does afterwards", async () => {
    await using worker = await testWorker(options);
    const starting = refused(() => worker.start(run("/no/such/program")));
    const [found] = worker.list({ states: ["starting"], limit: 1 }).jobs;
    const stopping = refused(() => worker.stop(found?.id ?? "", { by }));
    const waiting = refused(() => worker.wait(found?.id ?? ""));
    expect(await starting).toMatchObject({ code: "invalid", field: "command" });
    for (const error of [await stopping, await waiting])
      expect(error).toMatchObject({ code: "not-found", field: "job_id" });
    expect(worker.traces()).toEqual([]);
  });

  test("goes on when its caller gives up waiting", async () => {
    await using worker = await testWorker(options);
    const { id } = await startReady(worker, ignoresTerm);
    const abort = new AbortController();
    const stopping = refused(() => worker.stop(id, { by, graceMs: 200 }, abort.signal));
    await until("it is stopping", () => worker.query(id).state === "stopping");
    abort.abort();
    expect(await stopping).toMatchObject({ code: "unavailable" });
    expect((await worker.wait(id)).ended).toMatchObject({ how: { kind: "stopped", by, escalated: true } });
  });

  test.each([
    ["signal", { signal: 0 }],
    ["signal", { signal: 65 }],
    ["signal", { signal: 1.5 }],
    ["grace", { graceMs: -1 }],
    ["grace", { graceMs: NaN }],
    ["grace", { graceMs: Infinity }],
  ])("with a bad %s is refused and stops nothing: %o", async (field, how) => {
    await using worker = await testWorker(options);
    const { id } = await startReady(worker, waits);
    expect(await refused(() => worker.stop(id, { by, ...how }))).toMatchObject({ code: "invalid", field });
    expect(worker.query(id).state).toBe("running");
  });
});
