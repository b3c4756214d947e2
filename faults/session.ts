import { readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { inspect } from "node:util";
import type { Job } from "../proto/generated/jobs/v1/worker.ts";
import { ClientError, resuming, retrying, type StartInput } from "../src/client/index.ts";
import { check, type Modelled } from "./model.ts";
import type { Operation, Sequence } from "./operations.ts";
import { reader, type Reader } from "./reader.ts";
import { processesOf } from "./sandbox.ts";
import { bytesOf, type Shape, wordsOf } from "./shape.ts";
import { settle } from "./settle.ts";
import type { World } from "./world.ts";

const RETRY_LIMIT_MS = 60_000;
/** How long an operation is waited for, before the next one is done beside it. */
const PATIENCE_MS = 100;

/** What was done, all sequences together. */
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

/** Does one operation. Throws Error when something is not as it is to be. */
export async function perform(session: Session, operation: Operation): Promise<void> {
  const done = act(session, operation);
  if (done !== undefined) await Promise.race([done, delay(PATIENCE_MS)]);
  if (session.failures.length > 0) throw session.failures[0];
  if (session.full !== undefined && session.full-- <= 0) free(session);
  if (!session.world.up && session.away-- <= 0) {
    await session.world.boot();
    await settle(session);
  }
}

/** What is in flight then is told by a promise; undefined when the operation had no object. */
function act(session: Session, operation: Operation): Promise<void> | undefined {
  const { world, figures } = session;
  switch (operation.kind) {
    case "pause":
      return delay(operation.ms);
    case "start": {
      const job = add(session, operation.shape);
      if (operation.follow) void start(session, job, operation.retry).then(() => follow(session, job, 0));
      if (operation.twice) void start(session, job, operation.retry);
      return start(session, job, operation.retry);
    }
    case "burst":
      for (const shape of operation.shapes) void start(session, add(session, shape), operation.retry);
      return delay(0);
    case "start-missing":
      return call(session, "start of what is missing", () => startMissing(session));
    case "list":
      return call(session, "list", async () => {
        await retrying(world.client, () => world.client.list({ limit: 1000 }), { limitMs: RETRY_LIMIT_MS });
      });
    case "kill":
    case "upgrade":
      if (!world.up) return undefined;
      return end(session, operation);
    case "freeze":
      if (!world.up) return undefined;
      figures.operations++;
      void world.freeze(operation.ms);
      return delay(0);
    case "fill-disk":
      if (session.full !== undefined) return undefined;
      figures.operations++;
      figures.fills++;
      session.fills++;
      session.full = operation.operations;
      for (const job of session.jobs) job.mayHaveGaps ||= job.ended === undefined;
      world.fill();
      return delay(0);
    default: {
      const known = session.jobs.filter(({ id }) => id !== undefined);
      const job = known[operation.job % known.length];
      return job && actOn(session, operation, job);
    }
  }
}

function actOn(
  session: Session,
  operation: Extract<Operation, { job: number }>,
  job: Modelled,
): Promise<void> | undefined {
  const { world } = session;
  const jobId = job.id ?? "";
  const again = { limitMs: RETRY_LIMIT_MS };
  switch (operation.kind) {
    case "start-again":
      return call(session, `start of ${job.key} again`, async () => {
        const answer = await retrying(world.client, () => world.client.start(request(session, job)), again);
        if (answer.jobId !== jobId || !answer.alreadyStarted)
          throw new Error(`${job.key} was ${jobId}, and started again is ${JSON.stringify(answer)}`);
      });
    case "stop":
      job.stops++;
      return call(session, `stop of ${job.key}`, async () => {
        const { signal, graceMs } = operation;
        const grace = { seconds: 0n, nanos: graceMs * 1e6 };
        const answer = await retrying(world.client, () => world.client.stop({ jobId, signal, grace }), again);
        checkEnd(job, answer.job);
      });
    case "wait":
      session.figures.operations++;
      last(session, `wait for ${job.key}`, async () => {
        const { job: told } = await retrying(world.client, () => world.client.wait(jobId), {
          ...again,
          signal: session.signal,
        });
        checkEnd(job, told);
      });
      return delay(0);
    case "query":
      return call(session, `query of ${job.key}`, async () => {
        const { job: told, exited, exitCode } = await retrying(world.client, () => world.client.query(jobId), again);
        if (told === undefined) throw new Error(`${job.key}: no job was told`);
        check(job, told);
        if (exited !== (told.ended !== undefined) || exitCode !== (told.ended?.exitCode ?? -1))
          throw new Error(`${job.key}: exited is ${exited}, its code ${exitCode}, of ${inspect(told.ended)}`);
      });
    case "stream":
      return call(session, `stream of ${job.key}`, async () => {
        await read(session, job, await offsetOf(session, job, operation.from), false);
      });
    case "follow":
      session.figures.operations++;
      follow(session, job, operation.from);
      return delay(0);
    default:
      return killSupervisor(session, job);
  }
}

function checkEnd(modelled: Modelled, job: Job | undefined): void {
  if (job?.ended === undefined) throw new Error(`${modelled.key}: the end was answered before there was one`);
  check(modelled, job);
}

/** A call that is answered soon. While the disk is full it may fail. */
function call(session: Session, what: string, work: () => Promise<void>): Promise<void> {
  session.figures.operations++;
  const { full, fills } = session;
  return track(session.flying, session, what, async () => {
    try {
      await work();
    } catch (error) {
      const disk = full !== undefined || session.full !== undefined || session.fills !== fills;
      if (!(disk && error instanceof ClientError)) throw error;
    }
  });
}

function last(session: Session, what: string, work: () => Promise<void>): void {
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

function add(session: Session, shape: Shape): Modelled {
  const { jobs, world, sequence } = session;
  const pool = world.place.pool.bytes;
  const written = { stdout: bytesOf(shape, "stdout", pool), stderr: bytesOf(shape, "stderr", pool) };
  const size = written.stdout.length + written.stderr.length;
  const job: Modelled = {
    key: `job-${jobs.length}`,
    shape,
    written,
    id: undefined,
    stops: 0,
    supervisorKilled: false,
    mayHaveGaps: session.full !== undefined || (sequence.logLimit > 0 && size > sequence.logLimit),
    ended: undefined,
  };
  jobs.push(job);
  return job;
}

export function request({ world }: Session, { key, shape }: Pick<Modelled, "key" | "shape">): StartInput {
  const { place, marks } = world;
  const { timeLimitMs } = shape;
  return {
    command: place.program,
    args: [key, marks, place.pool.path, ...wordsOf(shape)],
    env: new Map([
      ["FAULTS_RUN", place.sandbox.run],
      ["FAULTS_JOB", key],
    ]),
    labels: new Map([["key", key]]),
    requestId: key,
    ...(timeLimitMs !== undefined && { timeLimit: { seconds: 0n, nanos: timeLimitMs * 1e6 } }),
  };
}

/** What becomes of a start that was not answered is found out when all has settled. */
function start(session: Session, job: Modelled, retry: boolean): Promise<void> {
  const { world, figures } = session;
  figures.starts++;
  return call(session, `start of ${job.key}`, async () => {
    const once = (): ReturnType<typeof world.client.start> => world.client.start(request(session, job));
    try {
      const { jobId } = await (retry ? retrying(world.client, once, { limitMs: RETRY_LIMIT_MS }) : once());
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

async function startMissing({ world }: Session): Promise<void> {
  const missing = {
    command: "/nonexistent/program",
    labels: new Map([["key", "missing"]]),
    requestId: `missing-${Math.random()}`,
  };
  try {
    await retrying(world.client, () => world.client.start(missing), { limitMs: RETRY_LIMIT_MS });
  } catch (error) {
    if (error instanceof ClientError && error.facts["stage"] === "exec" && error.facts["errno"] === "ENOENT") return;
    throw error;
  }
  throw new Error("what is missing was started");
}

/** Of `from` thousandths of what there is. */
async function offsetOf({ world }: Session, { id = "" }: Modelled, from: number): Promise<number> {
  if (from === 0) return 0;
  const { job } = await retrying(world.client, () => world.client.query(id), { limitMs: RETRY_LIMIT_MS });
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
  const { world, figures, signal } = session;
  const place = reader(job.written, from);
  let end: Job | undefined;
  const messages = resuming(
    world.client,
    { jobId: job.id, position: { $case: "offset", value: BigInt(from) }, follow: following },
    { limitMs: RETRY_LIMIT_MS, signal, onResume: () => figures.resumed++ },
  );
  try {
    for await (const message of messages) {
      place.take(message);
      end = message.end ?? end;
    }
  } catch (error) {
    if (signal.aborted) return;
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

async function end(
  session: Session,
  { kind, afterMs, away }: Extract<Operation, { kind: "kill" | "upgrade" }>,
): Promise<void> {
  const { world, figures } = session;
  await delay(afterMs);
  session.away = away;
  figures.operations++;
  figures[kind === "kill" ? "kills" : "upgrades"]++;
  try {
    await world.end(kind === "kill" ? "SIGKILL" : "SIGTERM");
  } catch (error) {
    session.failures.push(error);
  }
}

/** The processes of each job, by its key. */
export function processesOfJobs({ world }: Session): Map<string, number[]> {
  const found = new Map<string, number[]>();
  for (const [pid, environment] of processesOf(world.place.sandbox.run)) {
    const key = /(?:^|\0)FAULTS_JOB=([^\0]+)\0/.exec(environment)?.[1];
    if (key !== undefined) found.set(key, [...(found.get(key) ?? []), pid]);
  }
  return found;
}

/** The parent of a job's first process. */
function killSupervisor(session: Session, job: Modelled): Promise<void> | undefined {
  const processes = processesOfJobs(session).get(job.key) ?? [];
  const supervisors = processes.map(parentOf).filter((pid) => pid !== undefined && !processes.includes(pid));
  const supervisor = supervisors.find((pid) => pid !== undefined && commandOf(pid) === "supervisor");
  if (supervisor === undefined) return undefined;
  session.figures.operations++;
  session.figures.supervisorKills++;
  job.supervisorKilled = true;
  process.kill(supervisor, "SIGKILL");
  return delay(0);
}

function parentOf(pid: number): number | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]);
  } catch {
    return undefined;
  }
}

function commandOf(pid: number): string | undefined {
  try {
    return readFileSync(`/proc/${pid}/comm`, "utf8").trim();
  } catch {
    return undefined;
  }
}

export function free(session: Session): void {
  session.full = undefined;
  session.world.free();
}
