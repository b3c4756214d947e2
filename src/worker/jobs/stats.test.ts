import { describe, expect, test } from "vitest";
import { finished, modes, refused, run, startReady, testWorker, until, waits } from "../testing/worker.ts";

const by = "tester";

describe.each(modes)("what a job uses %s", (_mode, options) => {
  test("is sampled at once, then at the interval, and last with the figures of its end", async () => {
    await using worker = await testWorker(options);
    const { id } = await startReady(worker, waits);
    const samples = worker.stats(id, { intervalMs: 100 });
    const elapsed: number[] = [];
    for (let i = 0; i < 3; i++) {
      const { done, value } = await samples.next();
      if (!done) elapsed.push(value.elapsedMs);
    }
    expect(elapsed).toHaveLength(3);
    expect(elapsed).toEqual(elapsed.toSorted((a, b) => a - b));
    const waiting = samples.next();
    await worker.stop(id, { graceMs: 0, by });
    let last = await waiting;
    while (!last.done) last = await samples.next();
    expect(last.value).toEqual(worker.query(id));
    expect(last.value).toMatchObject({ state: "ended", ended: { how: { kind: "stopped", by } } });
  });

  test("is sampled until the job ends, and not until the interval has passed", async () => {
    await using worker = await testWorker(options);
    const { id } = await startReady(worker, waits);
    const samples = worker.stats(id, { intervalMs: 24 * 3600 * 1000 });
    await samples.next();
    const waiting = samples.next();
    await worker.stop(id, { graceMs: 0, by });
    expect(await waiting).toMatchObject({ done: true, value: { state: "ended" } });
  });

  test("is not sampled after the end, which has the last figures", async () => {
    await using worker = await testWorker(options);
    const { id } = await finished(worker, run("true"));
    expect(await worker.stats(id, {}).next()).toEqual({ done: true, value: worker.query(id) });
  });

  test("is measured when it is asked for: a slow reader misses the samples in between", async () => {
    await using worker = await testWorker(options);
    const { id } = await startReady(worker, waits);
    const elapsedMs = (): number => worker.query(id).usage?.elapsedMs ?? 0;
    const samples = worker.stats(id, { intervalMs: 100 });
    await samples.next();
    const beginMs = elapsedMs();
    await until("five intervals have passed", () => elapsedMs() > beginMs + 500);
    const askedMs = elapsedMs();
    const { value } = await samples.next();
    expect(value).toMatchObject({ elapsedMs: expect.any(Number) });
    expect(value && "elapsedMs" in value && value.elapsedMs).toBeGreaterThanOrEqual(askedMs);
    await samples.return(worker.query(id));
  });
});

test("an interval that is too short or too long is refused at once, and so is a job that does not exist", async () => {
  await using worker = await testWorker(modes[0]?.[1]);
  const { job } = await worker.start(waits);
  for (const intervalMs of [0, 99.9, -1, Number.NaN, 24 * 3600 * 1000 + 1])
    expect(await refused(() => worker.stats(job.id, { intervalMs }))).toMatchObject({
      code: "invalid",
      field: "interval",
    });
  expect(await refused(() => worker.stats("nobody", {}))).toMatchObject({ code: "not-found" });
});

test("samples end when their signal is aborted, and when the worker closes", async () => {
  await using worker = await testWorker(modes[0]?.[1]);
  const { id } = await startReady(worker, waits);
  const giveUp = new AbortController();
  const [left, closed] = [worker.stats(id, { signal: giveUp.signal }), worker.stats(id, { intervalMs: 3_600_000 })];
  await Promise.all([left.next(), closed.next()]);
  const waiting = [left.next(), closed.next()];
  giveUp.abort();
  expect(await waiting[0]).toMatchObject({ done: true, value: { state: "running" } });
  await worker.close();
  expect(await waiting[1]).toMatchObject({ done: true, value: { id, state: "running" } });
});
