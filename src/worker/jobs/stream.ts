import { join, resolve } from "node:path";
import { codeOf } from "../../os/errno.ts";
import { openArchivedLog } from "../archive/log.ts";
import { isCompressedIn, objectKey } from "../archive/move.ts";
import type { JobRecord } from "../journal/record.ts";
import { logFilesIn } from "../log/files.ts";
import { type Log, openLog } from "../log/log.ts";
import { type Chunk, type Gap, readOutput, type StreamOptions } from "../log/reader.ts";
import { invalid, JobError } from "../model/errors.ts";
import { unreadable } from "../model/failure.ts";
import type { Job, JobLog, PruneReason } from "../model/job.ts";
import { abortSignal, type Check, kinds, number, oneOf, shape, text, truth } from "../model/shape.ts";
import { type Context, find, isTracked } from "./context.ts";
import { current, type TrackedJob, subscribe } from "./tracked-job.ts";

/** A job's output. Returns the offset to resume from, and the job at the end of the stream. */
export type Stream = AsyncGenerator<Chunk | Gap, { readonly offset: number; readonly job: Job }>;

const positionOf = (name: "offset" | "count"): Check => shape({ kind: text, [name]: number }, [name]);

const checkTypes = shape<StreamOptions>({
  position: kinds({
    offset: positionOf("offset"),
    "tail-bytes": positionOf("count"),
    "tail-lines": positionOf("count"),
  }),
  follow: truth,
  source: oneOf("stdout", "stderr"),
  times: truth,
  signal: abortSignal,
});

/** Streams a job's output. Throws at once, not at the first chunk: `invalid` for the position, `not-found`, `pruned`. */
export function stream(context: Context, id: string, options: StreamOptions): Stream {
  checkTypes("", options);
  const { position } = options;
  const place = position?.kind === "offset" ? position.offset : (position?.count ?? 0);
  if (!Number.isSafeInteger(place) || place < 0)
    throw invalid("position", `${place} is not a whole number of 0 or more`);
  const entry = find(context, id);
  const { log } = entry.job;
  // A journal on a full disk may not know yet that a log was moved into the archive.
  const elsewhere = log !== undefined && context.archive !== undefined;
  if (log?.kind === "pruned" || !(elsewhere || isHere(context, id))) throw notThere(id, log);
  return read(context, entry, options);
}

/** A stream under way ends with `pruned` when its log is pruned, so that the disk gets the room back. */
async function* read(context: Context, entry: TrackedJob | JobRecord, options: StreamOptions): Stream {
  const { id } = entry.job;
  await using opened = new AsyncDisposableStack(); // here, because a generator that is never read disposes of nothing
  const reader = opened.use(enter(context, id, options.signal));
  const live = isTracked(entry)
    ? {
        ended: () => context.closed || entry.job.state === "ended",
        subscribe: (wake: () => void) => subscribe(entry, wake),
      }
    : { ended: () => true, subscribe: () => ({ [Symbol.dispose]() {} }) };
  try {
    const output = await open(context, entry, opened, reader.signal);
    const { signal } = reader;
    let offset = yield* readOutput(output, live, { ...options, signal });
    // All output has to come before the message that tells of the end, after which nobody reads on.
    while (entry.job.state === "ended" && !signal.aborted && offset < output.extent().size)
      offset = yield* readOutput(output, live, { ...options, signal, position: { kind: "offset", offset } });
    if (reader.pruned) throw reader.pruned;
    if (!signal.aborted && offset < (sizeAtEnd(entry.job) ?? 0))
      throw new JobError("data-loss", `the output log is shorter than it was (at ${offset})`);
    return { offset, job: isTracked(entry) ? current(entry) : entry.job };
  } catch (error) {
    // The log may have been pruned while it was read.
    throw reader.pruned ?? unreadable(id, error);
  }
}

/** How many bytes of output a job's end told of; undefined when it has not ended, or nobody knows how. */
function sizeAtEnd({ ended, output }: Job): number | undefined {
  return ended === undefined || ended.how.kind === "lost" ? undefined : output.size;
}

/** Counts a reader of a job's log until disposed. Pruning the log aborts `signal`, and `pruned` says why. */
function enter(
  { journal, readers }: Context,
  id: string,
  signal: AbortSignal | undefined,
): Disposable & { readonly signal: AbortSignal; readonly pruned: JobError | undefined } {
  const ending = new AbortController();
  let pruned: JobError | undefined;
  const abort = (): void => ending.abort();
  const leave = (): void => {
    pruned = journal.find(id) ? notThere(id, journal.logs.of(id)) : removed(id);
    abort();
  };
  const others = readers.get(id) ?? new Set();
  readers.set(id, others.add(leave));
  signal?.addEventListener("abort", abort, { once: true });
  if (signal?.aborted) abort();
  return {
    signal: ending.signal,
    get pruned() {
      return pruned;
    },
    [Symbol.dispose]() {
      signal?.removeEventListener("abort", abort);
      others.delete(leave);
      if (others.size === 0 && readers.get(id) === others) readers.delete(id);
    },
  };
}

/** Opens a log here, or in the archive. A log leaves this disk only once it is in the archive, so it is in one of the two. */
async function open(
  context: Context,
  entry: TrackedJob | JobRecord,
  opened: AsyncDisposableStack,
  signal: AbortSignal,
): Promise<Log> {
  const { id } = entry.job;
  // What was put behind the end that is recorded is no output.
  const end = (): number => sizeAtEnd(entry.job) ?? Infinity;
  const { journal, options, archive } = context;
  // While the files of a log are being removed, the rest of them would read as an empty log.
  const before = journal.logs.of(id);
  if (before?.kind === "pruned") throw notThere(id, before);
  try {
    return own(opened.use(openLog(join(context.jobsDir, id), end)), entry.job);
  } catch (error) {
    if (codeOf(error) !== "ENOENT") throw error;
  }
  if (!journal.find(id)) throw removed(id);
  const log = journal.logs.of(id);
  if (!log || log.kind === "pruned" || !archive) throw notThere(id, log);
  const key = (file: string): string => objectKey(journal.instance, id, file);
  const compressed = log.kind === "archived" ? log.compressed : await isCompressedIn(archive.store, key, signal);
  if (compressed === undefined) throw notThere(id, log);
  const mostIndexBytes = mostIndexBytesOf(sizeAtEnd(entry.job) ?? Infinity);
  const places = { keyIn: key, compressed, directory: resolve(options.stateDir), signal, end, mostIndexBytes };
  return own(opened.use(await openArchivedLog(archive.store, places)).log, entry.job);
}

/** Each byte of output has a record at the most, and so has a gap before it; a compressed index has a table beside these. */
function mostIndexBytesOf(outputBytes: number): number {
  return 4096 + 64 * (outputBytes + 1);
}

/** Returns the log, if it is the job's: somebody may have mixed up files here, or objects in the archive. */
function own(log: Log, job: Job): Log {
  if (sizeAtEnd(job) === undefined) return log;
  const { started } = log.header();
  if (started?.pid === job.pid && started.at.getTime() === job.startedAt?.getTime()) return log;
  throw new JobError("data-loss", `the output log is not that of ${job.id}`);
}

function isHere({ jobsDir }: Context, id: string): boolean {
  try {
    return ["compressed", "plain"].includes(logFilesIn(join(jobsDir, id)));
  } catch (error) {
    throw unreadable(id, error);
  }
}

const WHY: Readonly<Record<PruneReason, string>> = {
  age: "it was older than this worker keeps logs (jobsd --log-prune-age)",
  count: "there were more logs than this worker keeps (jobsd --log-prune-count)",
  size: "all logs took more than this worker keeps (jobsd --log-prune-size)",
  free: "the disk had too little free space (jobsd --log-prune-free)",
  "keep-for": "its start asked for it to be kept no longer",
  missing: "its files were not there any more",
};

function removed(id: string): JobError {
  return new JobError("not-found", `job ${id} has been removed`, { reason: "removed", field: "job_id" });
}

function notThere(id: string, log: JobLog | undefined): JobError {
  if (log?.kind === "pruned") {
    const [since, bytes] = [log.at.toISOString(), String(log.bytes)];
    return new JobError(
      "pruned",
      `the output of ${id}, ${bytes} bytes of this worker's disk, was pruned at ${since}: ${WHY[log.why]}`,
      { facts: { bytes, since, why: log.why } },
    );
  }
  return log?.kind === "archived"
    ? new JobError(
        "unavailable",
        `the output of ${id} is in an archive, which this daemon is not told of (--archive)`,
        {
          reason: "archive-unavailable",
        },
      )
    : new JobError("not-found", `the output of ${id} is not there`);
}
