import type { JobSpec } from "../model/job.ts";
import type { WorkerOptions } from "../model/options.ts";
import { openWorker, type Worker } from "../worker.ts";

/* A daemon for tests to kill: the first message opens the worker, each that follows starts a job, or removes one that ends. */

let worker: Worker | undefined;

type Message = WorkerOptions | JobSpec | { readonly remove: string };

async function answer(message: Message): Promise<unknown> {
  if ("stateDir" in message) worker = await openWorker(message);
  else if ("remove" in message) {
    await worker?.wait(message.remove);
    await worker?.remove(message.remove);
    return message.remove;
  } else return (await worker?.start(message))?.job;
  return worker.host;
}

process.on("message", (message: Message) => {
  answer(message).then(
    (value) => process.send?.(value),
    (error: unknown) => process.send?.(error),
  );
});
