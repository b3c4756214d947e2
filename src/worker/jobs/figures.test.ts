import { mkdirSync, renameSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import type { WorkerMeter } from "../model/meter.ts";
import { refused, sh, startReady, testDirectory, testWorker, until, waits } from "../testing/worker.ts";

const by = "tester";

test("a worker tells how many jobs there are in each state, and what waits", async () => {
  using files = testDirectory();
  const [archive, away] = [join(files.path, "archive"), join(files.path, "away")];
  mkdirSync(archive);
  await using worker = await testWorker({
    archive: { kind: "directory", path: archive },
    archivePauses: { firstMs: 10, lastMs: 10 },
    maxJobs: 7,
  });
  const none = { starting: 0, running: 0, stopping: 0 };
  expect(worker.figures()).toEqual({
    jobs: none,
    endedJobs: undefined,
    maxJobs: 7,
    waitingStarts: 0,
    waitingWrites: 0,
    waitingLogs: 0,
    waitingArchive: 0,
  });
  const { job } = await worker.start(waits);
  const stubborn = await startReady(worker, sh('trap "" TERM; echo ready; while :; do sleep 1000; done'));
  expect(worker.figures().jobs).toEqual({ ...none, running: 2 });
  const stopping = worker.stop(stubborn.id, { by, graceMs: 300_000 });
  await until("it is being stopped", () => worker.figures().jobs.stopping === 1);
  expect(worker.figures().jobs).toEqual({ ...none, running: 1, stopping: 1 });
  renameSync(archive, away);
  await worker.stop(stubborn.id, { by, graceMs: 0 });
  await stopping;
  await worker.stop(job.id, { by });
  await until("both logs wait", () => worker.figures().waitingArchive === 2);
  renameSync(away, archive);
  await until("none waits", () => worker.figures().waitingArchive === 0);
  expect(worker.figures().jobs).toEqual(none);
});

test("a worker's meter hears of each start, of how long it took, and of each end, once", async () => {
  const heard: string[] = [];
  const took: number[] = [];
  const meter: WorkerMeter = {
    started({ command }, tookMs) {
      heard.push(`started ${command}`);
      took.push(tookMs);
    },
    repeated: () => void heard.push("repeated"),
    refused: (code) => void heard.push(`refused ${code}`),
    ended: ({ command, ended }) => void heard.push(`ended ${command} ${ended?.how.kind}`),
  };
  await using worker = await testWorker({ meter, maxJobs: 1 });
  const spec = { ...sh("exit 3"), requestId: "once" };
  const { job } = await worker.start(spec);
  await worker.wait(job.id);
  await until("the end is heard", () => heard.length === 2);
  await worker.start(spec);
  await refused(() => worker.start({ ...waits, command: "" }));
  await refused(() => worker.start({ ...waits, command: "/no/such/program" }));
  const running = await worker.start(waits);
  await refused(() => worker.start(waits));
  await worker.stop(running.job.id, { by });
  await until("the end is heard", () => heard.length === 8);
  expect(heard).toEqual([
    `started ${spec.command}`,
    `ended ${spec.command} exited`,
    "repeated",
    "refused invalid",
    "refused invalid",
    `started ${waits.command}`,
    "refused exhausted",
    `ended ${waits.command} stopped`,
  ]);
  expect(took.every((ms) => ms > 0 && ms < 60_000)).toBe(true);
});
