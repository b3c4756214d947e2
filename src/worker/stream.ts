import { existsSync } from "node:fs";
import { join } from "node:path";
import { find, isRunning, type Context } from "./context.ts";
import { JobError, invalid } from "./errors.ts";
import { unreadable } from "./failure.ts";
import type { Job } from "./job.ts";
import type { Record as Kept } from "./journal.ts";
import { openLog } from "./log.ts";
import { readOutput, type Chunk, type Gap, type StreamOptions } from "./output.ts";
import { current, subscribe, type Running } from "./running.ts";

/** A job's output. Returns where to resume, and the job as it is then. */
export type Stream = AsyncGenerator<Chunk | Gap, { readonly offset: number; readonly job: Job }>;

/** Throws at once, not at the first chunk: `invalid` for the position, `not-found`. */
export function stream(context: Context, id: string, options: StreamOptions): Stream {
  const { position } = options;
  const place = position?.kind === "offset" ? position.offset : (position?.count ?? 0);
  if (!Number.isSafeInteger(place) || place < 0)
    throw invalid("position", `${place} is not a whole number of 0 or more`);
  const entry = find(context, id);
  if (!existsSync(join(context.jobsDir, entry.job.id, "output")))
    throw new JobError("not-found", `the output of ${id} is not there`);
  return read(context, entry, options);
}

async function* read(context: Context, entry: Running | Kept, options: StreamOptions): Stream {
  try {
    return yield* readLog(context, entry, options);
  } catch (error) {
    throw unreadable(entry.job.id, error);
  }
}

async function* readLog(context: Context, entry: Running | Kept, options: StreamOptions): Stream {
  using output = openLog(join(context.jobsDir, entry.job.id)); // here, because a generator that nobody reads closes nothing
  const live = isRunning(entry)
    ? {
        ended: () => context.closed || entry.job.state === "ended",
        subscribe: (wake: () => void) => subscribe(entry, wake),
      }
    : { ended: () => true, subscribe: () => ({ [Symbol.dispose]() {} }) };
  let offset = yield* readOutput(output, live, options);
  // Where the last message tells the end there is nothing more: what was written until then has to come before it.
  while (entry.job.state === "ended" && !options.signal?.aborted && offset < output.extent().size)
    offset = yield* readOutput(output, live, { ...options, position: { kind: "offset", offset } });
  return { offset, job: isRunning(entry) && entry.job.state !== "ended" ? current(entry) : entry.job };
}
