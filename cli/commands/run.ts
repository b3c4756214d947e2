import type { Job, StartResponse } from "../../proto/generated/jobs/v1/worker.ts";
import { ClientError } from "../../src/client/errors.ts";
import type { Client, StartInput } from "../../src/client/index.ts";
import { retrying } from "../../src/client/resume.ts";
import { environment } from "../line/bytes.ts";
import { isIgnored } from "../line/caller.ts";
import { withClient } from "./with-client.ts";
import { exitCodeOfJob } from "../tell/exit.ts";
import { describeEnd, killedForMemory } from "../tell/format.ts";
import { riding } from "../tell/outage.ts";
import { exitBy, say } from "../tell/output.ts";
import { toDuration } from "../line/parse.ts";
import type { Given } from "../line/program.ts";
import { startJob, startRequest } from "./start.ts";
import { copy } from "./stream.ts";

/** Signals that would end this program by default, and leave the job behind. */
const ENDING = [
  "SIGHUP",
  "SIGINT",
  "SIGQUIT",
  "SIGTERM",
  "SIGUSR1",
  "SIGUSR2",
  "SIGALRM",
  "SIGXCPU",
  "SIGPWR",
] as const;

/**
 * `jobsctl run [flags] -- CMD ARGS…`: starts a job, streams its output and exits as it does. The job belongs to this
 * program: whatever ends this program stops the job first, or it is said that the job goes on.
 */
export async function run(given: Given): Promise<number> {
  const request = startRequest(given, environment());
  return withClient(given, async (client) => {
    using signals = onSignal(client, request.requestId ?? "");
    using crash = onCrash();
    const { jobId } = await Promise.race([started(client, request), crash.happened]);
    signals.started(jobId);
    const job = await follow(client, jobId, crash.happened);
    if (job.ended?.how?.$case !== "exited" || killedForMemory(job.usage) > 0n)
      say(`job ${jobId}: ${describeEnd(job).words}`);
    return exitCodeOfJob(job);
  });
}

async function started(client: Client, request: StartInput): Promise<StartResponse> {
  try {
    return await startJob(client, request);
  } catch (error) {
    if (error instanceof ClientError && UNANSWERED.has(error.code) && client.connections.count > 0)
      say(mayHaveStarted(request.requestId ?? ""));
    throw error;
  }
}

const UNANSWERED: ReadonlySet<string> = new Set(["UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED"]);

function mayHaveStarted(requestId: string): string {
  return `the worker may have started the job: jobsctl start --request-id ${requestId} with the same command tells its id`;
}

function goesOn(jobId: string): string {
  return `job ${jobId} may still be running: jobsctl stream --follow ${jobId} shows it, jobsctl stop ${jobId} stops it`;
}

async function follow(client: Client, jobId: string, crashed: Promise<never>): Promise<Job> {
  const end = async (): Promise<Job> => {
    const last = await copy(client, { jobId, position: { $case: "offset", value: 0n }, follow: true });
    if (last?.ended) return last;
    const { job } = await retrying(client, () => client.wait(jobId), riding(client));
    if (job) return job;
    throw new Error(`the worker does not tell how job ${jobId} ended`);
  };
  try {
    return await Promise.race([end(), crashed]);
  } catch (error) {
    // A worker that is away cannot be asked to stop it; for any other reason, as stdout that is full, it can.
    if (error instanceof ClientError) say(goesOn(jobId));
    else await stop(client, jobId).catch(() => say(goesOn(jobId)));
    throw error;
  }
}

/** Stops the job. Tries again when the worker is away for a moment, because nobody else would stop this job. */
async function stop(client: Client, jobId: string, graceMs?: number): Promise<void> {
  const grace = graceMs === undefined ? {} : { grace: toDuration(graceMs) };
  await retrying(client, () => client.stop({ jobId, ...grace }), riding(client, { quiet: true }));
}

/** First signal: stop; second: kill; third: leave it to itself. */
function onSignal(client: Client, requestId: string): Disposable & { started(jobId: string): void } {
  let signals = 0;
  let jobId: string | undefined;
  const act = (): void => {
    if (jobId === undefined) {
      say("stopping the job once the worker has answered; interrupt again to give up");
      return;
    }
    const id = jobId;
    const kill = signals > 1;
    say(kill ? `killing job ${id}` : `stopping job ${id}; interrupt again to kill it`);
    stop(client, id, kill ? 0 : undefined).catch((error: Error) =>
      say(`job ${id} could not be stopped: ${error.message}`, [goesOn(id)]),
    );
  };
  const listener = (signal: NodeJS.Signals): void => {
    signals++;
    if (signals <= (jobId === undefined ? 1 : 2)) {
      act();
      return;
    }
    say(jobId === undefined ? `given up; ${mayHaveStarted(requestId)}` : goesOn(jobId));
    void exitBy(signal);
  };
  const heard = ENDING.filter((signal) => !isIgnored(signal));
  for (const signal of heard) process.on(signal, listener);
  return {
    started(id) {
      jobId = id;
      if (signals > 0) act();
    },
    [Symbol.dispose]() {
      for (const signal of heard) process.off(signal, listener);
    },
  };
}

/** Returns a promise that is rejected with the first error that nobody has caught, and never resolves. */
function onCrash(): Disposable & { readonly happened: Promise<never> } {
  const { promise: happened, reject } = Promise.withResolvers<never>();
  happened.catch(() => {}); // the error reaches those who wait for the promise
  process.on("uncaughtException", reject);
  return {
    happened,
    [Symbol.dispose]() {
      process.off("uncaughtException", reject);
    },
  };
}
