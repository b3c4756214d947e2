import { type Job, LogCompression } from "../proto/generated/jobs/v1/worker.ts";
import { type Client, ClientError, resuming, retrying, type StartInput } from "../src/client/index.ts";
import { check, type Modelled } from "./model.ts";
import type { Sequence } from "./operations.ts";
import { reader, type Reader } from "./reader.ts";
import { processesOf } from "./sandbox.ts";
import { bytesOf, type Shape, wordsOf } from "./shape.ts";
import type { World } from "./world.ts";

const RETRY_LIMIT_MS = 60_000;

/** Counts of what all sequences together have done. */
export interface Figures {
  operations: number;
  starts: number;
  kills: number;
  upgrades: number;
  supervisorKills: number;
  fills: number;
  resumed: number;
  compared: number;
  gaps: number;
  gapBytes: number;
  compressed: number;
  archived: number;
}

/** A daemon and what has been asked of it. */
export interface Session {
  readonly world: World;
  readonly sequence: Sequence;
  readonly figures: Figures;
  readonly jobs: Modelled[];
  /** Calls that will be answered as soon as there is a daemon, by what they are. */
  readonly flying: Map<Promise<void>, string>;
  /** Those that are answered at a job's end. */
  readonly lasting: Map<Promise<void>, string>;
  readonly failures: unknown[];
  /** Ends what is in flight. */
  readonly signal: AbortSignal;
  /** Operations until the next daemon is booted, and until the disk has room again. */
  away: number;
  full: number | undefined;
  fills: number;
}

/** The answer of whichever daemon is there to give one. Only for calls that may be repeated. */
export function ask<Answer>(
  { world }: Pick<Session, "world">,
  call: (client: Client) => Promise<Answer>,
  signal?: AbortSignal,
): Promise<Answer> {
  return retrying(world.client, () => call(world.client), { limitMs: RETRY_LIMIT_MS, signal });
}

/** A call that is answered soon. While the disk is full it may be refused. */
export function call(session: Session, what: string, work: () => Promise<void>): Promise<void> {
  session.figures.operations++;
  const wasFull = sinceNow(session);
  return track(session.flying, session, what, async () => {
    try {
      await work();
    } catch (error) {
      if (!(wasFull() && error instanceof ClientError && error.code !== "INTERNAL")) throw error;
    }
  });
}

/** Whether the disk has been full since. */
function sinceNow(session: Session): () => boolean {
  const { full, fills } = session;
  return () => full !== undefined || session.full !== undefined || session.fills !== fills;
}

export function last(session: Session, what: string, work: () => Promise<void>): void {
  void track(session.lasting, session, what, work);
}

function track(
  into: Map<Promise<void>, string>,
  { failures, signal }: Session,
  what: string,
  work: () => Promise<void>,
): Promise<void> {
  const tracked = work()
    .catch((error: unknown) => {
      if (!signal.aborted) failures.push(new Error(`${what}: ${String(error)}`, { cause: error }));
    })
    .finally(() => into.delete(tracked));
  into.set(tracked, what);
  return tracked;
}

export function add(session: Session, shape: Shape): Modelled {
  const { jobs, world, sequence } = session;
  const pool = world.place.pool.bytes;
  const written = { stdout: bytesOf(shape, "stdout", pool), stderr: bytesOf(shape, "stderr", pool) };
  const size = written.stdout.length + written.stderr.length;
  const limit = shape.log.limit ?? sequence.logLimit;
  const job: Modelled = {
    key: `job-${jobs.length}`,
    shape,
    written,
    id: undefined,
    stops: 0,
    supervisorKilled: false,
    mayHaveGaps: session.full !== undefined || (limit > 0 && size > limit),
    ended: undefined,
  };
  jobs.push(job);
  return job;
}

export function request({ world, sequence }: Session, { key, shape }: Pick<Modelled, "key" | "shape">): StartInput {
  const { place, marks } = world;
  const { timeLimitMs, log } = shape;
  return {
    command: place.program,
    args: [key, marks, place.pool.path, ...wordsOf(shape)],
    env: new Map([
      ["FAULTS_RUN", place.sandbox.run],
      ["FAULTS_JOB", key],
    ]),
    labels: new Map([["key", key]]),
    requestId: key,
    log: {
      limit: log.limit === undefined ? undefined : BigInt(log.limit),
      compression: compressionOf(log.compress),
      archive: sequence.archive && log.stays ? false : undefined,
    },
    ...(timeLimitMs !== undefined && { timeLimit: { seconds: 0n, nanos: timeLimitMs * 1e6 } }),
  };
}

function compressionOf(compress: boolean | undefined): LogCompression {
  if (compress === undefined) return LogCompression.LOG_COMPRESSION_UNSPECIFIED;
  return compress ? LogCompression.LOG_COMPRESSION_ZSTD : LogCompression.LOG_COMPRESSION_OFF;
}

/** Starts a job. A start that was not answered is looked up once all has settled. */
export function start(session: Session, job: Modelled, retry: boolean): Promise<void> {
  const { world, figures } = session;
  figures.starts++;
  return call(session, `start of ${job.key}`, async () => {
    const once = (client: Client): ReturnType<Client["start"]> => client.start(request(session, job));
    try {
      const { jobId } = await (retry ? ask(session, once) : once(world.client));
      identify(job, jobId);
    } catch (error) {
      const cut = error instanceof ClientError && (error.code === "UNAVAILABLE" || error.code === "CANCELLED");
      if (retry || !cut) throw error;
    }
  });
}

export function identify(job: Modelled, id: string): void {
  job.id ??= id;
  if (job.id !== id) throw new Error(`${job.key} was started twice: ${job.id} and ${id}`);
}

/** Resolves to the offset at `from` thousandths of the job's output so far. */
export async function offsetOf(session: Session, { id = "" }: Modelled, from: number): Promise<number> {
  if (from === 0) return 0;
  const { job } = await ask(session, (client) => client.query(id));
  return Math.floor((Number(job?.output?.size ?? 0n) * from) / 1000);
}

/** Follows a job to its end, whatever becomes of the daemon meanwhile. */
export function follow(session: Session, job: Modelled, from: number): void {
  if (job.id === undefined) return;
  last(session, `follower of ${job.key}`, async () => {
    await read(session, job, await offsetOf(session, job, from), true);
  });
}

/** Reads a job's output and compares it. */
export async function read(session: Session, job: Modelled, from: number, following: boolean): Promise<void> {
  const { world, figures, sequence, signal } = session;
  const wasFull = sinceNow(session);
  const place = reader(job.written, from);
  let end: Job | undefined;
  const messages = resuming(
    world.client,
    { jobId: job.id ?? "", position: { $case: "offset", value: BigInt(from) }, follow: following },
    { limitMs: RETRY_LIMIT_MS, signal, onResume: () => figures.resumed++ },
  );
  try {
    for await (const message of messages) {
      place.take(message);
      end = message.end ?? end;
    }
  } catch (error) {
    if (signal.aborted) return;
    // The index of a log in the archive is copied to the disk.
    const exhausted = error instanceof ClientError && error.code === "RESOURCE_EXHAUSTED";
    if (sequence.archive && exhausted && wasFull()) return;
    throw new Error(`${following ? "following" : "reading"} from ${from}: ${String(error)}`, { cause: error });
  }
  figures.compared += place.compared;
  figures.gaps += place.gaps;
  figures.gapBytes += place.gapBytes;
  checkRead(job, place, end, following);
}

function checkRead(job: Modelled, place: Reader, end: Job | undefined, following: boolean): void {
  if (place.gaps > 0 && !job.mayHaveGaps) throw new Error(`${place.gapBytes} bytes were told as gaps`);
  if (end === undefined) throw new Error("the stream ended without telling how the job is");
  check(job, end);
  if (following && end.ended === undefined) throw new Error("the follower was let go before the job's end");
  if (end.ended === undefined) return;
  if (place.offset !== Number(end.output?.size)) throw new Error(`ended at ${place.offset} of ${end.output?.size}`);
  if (end.ended.how?.$case === "exited" || end.ended.how?.$case === "signalled") place.whole();
}

/** The processes of each job, by its key. */
export function processesOfJobs({ world }: Session): Map<string, number[]> {
  const found = new Map<string, number[]>();
  for (const [pid, environment] of processesOf(world.place.sandbox)) {
    const key = /(?:^|\0)FAULTS_JOB=([^\0]+)\0/.exec(environment)?.[1];
    if (key !== undefined) found.set(key, [...(found.get(key) ?? []), pid]);
  }
  return found;
}

export function free(session: Session): void {
  session.full = undefined;
  session.world.free();
}
