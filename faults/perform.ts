import { readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { inspect } from "node:util";
import type { Job } from "../proto/generated/jobs/v1/worker.ts";
import { ClientError } from "../src/client/index.ts";
import { check, type Modelled } from "./model.ts";
import type { Operation } from "./operations.ts";
import {
  add,
  ask,
  call,
  follow,
  free,
  last,
  offsetOf,
  processesOfJobs,
  read,
  request,
  type Session,
  start,
} from "./session.ts";
import { settle } from "./settle.ts";

/** How long to wait for an operation before the next one is begun beside it. */
const PATIENCE_MS = 100;

/** Does one operation. Throws Error where the daemon differs from the model. */
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

/** Begins an operation. Returns a promise of its end, or undefined when there was no job to do it to. */
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
        await ask(session, (client) => client.list({ limit: 1000 }));
      });
    case "kill":
    case "upgrade":
      if (!world.up) return undefined;
      if (operation.kind === "kill")
        for (const each of operation.starts) void start(session, add(session, each), each.steps.length % 2 === 0);
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
  const jobId = job.id ?? "";
  switch (operation.kind) {
    case "start-again":
      return call(session, `start of ${job.key} again`, async () => {
        const answer = await ask(session, (client) => client.start(request(session, job)));
        if (answer.jobId !== jobId || !answer.alreadyStarted)
          throw new Error(`${job.key} was ${jobId}, and started again is ${JSON.stringify(answer)}`);
      });
    case "stop":
      job.stops++;
      return call(session, `stop of ${job.key}`, async () => {
        const { signal, graceMs } = operation;
        const grace = { seconds: 0n, nanos: graceMs * 1e6 };
        const answer = await ask(session, (client) => client.stop({ jobId, signal, grace }));
        checkEnd(job, answer.job);
      });
    case "wait":
      session.figures.operations++;
      last(session, `wait for ${job.key}`, async () => {
        const { job: told } = await ask(session, (client) => client.wait(jobId), session.signal);
        checkEnd(job, told);
      });
      return delay(0);
    case "query":
      return call(session, `query of ${job.key}`, async () => {
        const { job: told, exited, exitCode } = await ask(session, (client) => client.query(jobId));
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

async function startMissing(session: Session): Promise<void> {
  const missing = {
    command: "/nonexistent/program",
    labels: new Map([["key", "missing"]]),
    requestId: `missing-${Math.random()}`,
  };
  try {
    await ask(session, (client) => client.start(missing));
  } catch (error) {
    if (error instanceof ClientError && error.facts["stage"] === "exec" && error.facts["errno"] === "ENOENT") return;
    throw error;
  }
  throw new Error("what is missing was started");
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
