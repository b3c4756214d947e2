import { expect, test } from "vitest";
import { finished, run, testWorker } from "../testing/worker.ts";
import { endOf, trackedJob } from "./tracked-job.ts";

test("whoever waits for an end gets it, and leaves nothing behind on giving up", async () => {
  await using worker = await testWorker();
  const job = await finished(worker, run("true"));
  const entry = trackedJob(job, worker.stateDir, { kind: "none", reason: "of no matter" });
  const stays = endOf(entry, undefined);
  for (let i = 0; i < 100; i++) {
    const abort = new AbortController();
    const waits = endOf(entry, abort.signal);
    abort.abort();
    await expect(waits).rejects.toMatchObject({ code: "unavailable" });
  }
  await expect(endOf(entry, AbortSignal.abort())).rejects.toMatchObject({ code: "unavailable" });
  expect(entry.waiting?.size).toBe(1);
  entry.ended.resolve(job);
  expect(await stays).toBe(job);
  expect(await endOf(entry, undefined)).toBe(job);
});
