import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import { openArchivedLog } from "./archive/log.ts";
import { keyOf } from "./archive/move.ts";
import { find, isRunning, type Context } from "./context.ts";
import { JobError, codeOf, invalid } from "./errors.ts";
import { unreadable } from "./failure.ts";
import type { Job } from "./job.ts";
import type { Record as Kept } from "./journal.ts";
import { openLog, type Log } from "./log.ts";
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
  if (!isHere(context, id) && !(isArchived(context, id) && context.archive)) throw notThere(context, id);
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
  await using opened = new AsyncDisposableStack(); // here, because a generator that nobody reads closes nothing
  const output = await open(context, entry.job.id, opened, options.signal);
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
  return { offset, job: isRunning(entry) ? current(entry) : entry.job };
}

/** A log that leaves this disk does so once it is in the archive: whoever does not find it here finds it there. */
async function open(context: Context, id: string, opened: AsyncDisposableStack, signal = NEVER): Promise<Log> {
  try {
    return opened.use(openLog(join(context.jobsDir, id)));
  } catch (error) {
    if (codeOf(error) !== "ENOENT") throw error;
  }
  if (!isArchived(context, id) || !context.archive) throw notThere(context, id);
  const { journal, options, archive } = context;
  const places = {
    keyOf: (file: string) => keyOf(journal.instance, id, file),
    directory: resolve(options.stateDir),
    signal,
  };
  return opened.use(await openArchivedLog(archive.store, places)).log;
}

const NEVER = new AbortController().signal;

function isHere({ jobsDir }: Context, id: string): boolean {
  return existsSync(join(jobsDir, id, "output")) && existsSync(join(jobsDir, id, "index"));
}

function isArchived({ journal }: Context, id: string): boolean {
  return journal.logs.isArchived(id);
}

function notThere(context: Context, id: string): JobError {
  return isArchived(context, id)
    ? new JobError("unavailable", `the output of ${id} is in an archive, which this daemon is not told of (--archive)`)
    : new JobError("not-found", `the output of ${id} is not there`);
}
