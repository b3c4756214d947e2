import type { Job } from "../../proto/generated/jobs/v1/worker.ts";
import type { Client } from "../../src/client/index.ts";
import { retrying } from "../../src/client/resume.ts";
import { environment } from "../bytes.ts";
import { withClient } from "../connection.ts";
import { ClosedPipe, EXIT, exitCodeOfJob } from "../exit.ts";
import { describeEnd, killedForMemory } from "../format.ts";
import { riding } from "../outage.ts";
import { exit, say } from "../output.ts";
import { toDuration } from "../parse.ts";
import type { Given } from "../program.ts";
import { startJob, startRequest } from "./start.ts";
import { copy } from "./stream.ts";

/**
 * `jobs run [flags] -- CMD ARGS…`: starts a job, streams its output and exits as it does. The job belongs to this
 * program: an interrupt, or a reader of stdout that goes away, stops it.
 */
export async function run(given: Given): Promise<number> {
  const request = startRequest(given, environment());
  return withClient(given, async (client) => {
    using interrupts = onInterrupt(client);
    const { jobId } = await startJob(client, request);
    interrupts.started(jobId);
    const job = await follow(client, jobId);
    if (job.ended?.how?.$case !== "exited" || killedForMemory(job.usage) > 0n)
      say(`job ${jobId}: ${describeEnd(job).words}`);
    return exitCodeOfJob(job);
  });
}

async function follow(client: Client, jobId: string): Promise<Job> {
  try {
    const end = await copy(client, { jobId, position: { $case: "offset", value: 0n }, follow: true });
    if (end?.ended) return end;
  } catch (error) {
    if (error instanceof ClosedPipe) await stop(client, jobId);
    else say(`job ${jobId} may still be running; jobs stop ${jobId} stops it`);
    throw error;
  }
  const { job } = await retrying(client, () => client.wait(jobId), riding(client));
  if (job) return job;
  throw new Error(`the worker does not tell how job ${jobId} ended`);
}

/** Also when the worker is away for a moment: nobody else would stop this job. */
async function stop(client: Client, jobId: string, graceMs?: number): Promise<void> {
  const grace = graceMs === undefined ? {} : { grace: toDuration(graceMs) };
  await retrying(client, () => client.stop({ jobId, ...grace }), riding(client, { quiet: true }));
}

/** First interrupt: stop; second: kill; third: leave it to itself. */
function onInterrupt(client: Client): Disposable & { started(jobId: string): void } {
  let interrupts = 0;
  let jobId: string | undefined;
  const act = (): void => {
    if (jobId === undefined) {
      say("stopping the job once the worker has answered; interrupt again to give up");
      return;
    }
    const id = jobId;
    const kill = interrupts > 1;
    say(kill ? `killing job ${id}` : `stopping job ${id}; interrupt again to kill it`);
    stop(client, id, kill ? 0 : undefined).catch((error: Error) =>
      say(`job ${id} could not be stopped: ${error.message}`),
    );
  };
  const onSignal = (): void => {
    interrupts++;
    if (interrupts <= (jobId === undefined ? 1 : 2)) {
      act();
      return;
    }
    say(jobId === undefined ? "given up before the worker answered" : `job ${jobId} may still be running`);
    void exit(EXIT.interrupted);
  };
  process.on("SIGINT", onSignal).on("SIGTERM", onSignal);
  return {
    started(id) {
      jobId = id;
      if (interrupts > 0) act();
    },
    [Symbol.dispose]() {
      process.off("SIGINT", onSignal).off("SIGTERM", onSignal);
    },
  };
}
