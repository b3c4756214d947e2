import type { JobSpec } from "../model/job.ts";
import type { WorkerOptions } from "../model/options.ts";
import { openWorker, type Worker } from "../worker.ts";

/* A daemon for tests to kill: the first message opens the worker, each that follows starts a job. */

let worker: Worker | undefined;

async function answer(message: WorkerOptions | JobSpec): Promise<unknown> {
  if ("stateDir" in message) worker = await openWorker(message);
  else return (await worker?.start(message))?.job;
  return worker.host;
}

process.on("message", (message: WorkerOptions | JobSpec) => {
  answer(message).then(
    (value) => process.send?.(value),
    (error: unknown) => process.send?.(error),
  );
});
