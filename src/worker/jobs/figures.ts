import { JobError } from "../model/errors.ts";
import type { JobSpec } from "../model/job.ts";
import type { Figures, WorkerMeter } from "../model/meter.ts";
import type { Context } from "./context.ts";
import { start, type Started } from "./start.ts";

/** Returns what a worker has to do now. */
export function figuresOf({ archive, journal, options, retirement, spawner, tracked }: Context): Figures {
  const jobs = { starting: 0, running: 0, stopping: 0 };
  // An ended job stays here until its end is on the disk.
  for (const { job } of tracked.values()) if (job.state !== "ended") jobs[job.state]++;
  return {
    jobs,
    endedJobs: retirement.kept(),
    maxJobs: options.maxJobs,
    waitingStarts: spawner.waiting(),
    waitingWrites: journal.waiting(),
    waitingLogs: retirement.waiting(),
    waitingArchive: archive?.waiting() ?? 0,
  };
}

/** Starts a job as `start` does, and tells the meter what became of that. */
export async function meteredStart(
  context: Context,
  spec: JobSpec,
  { meter, signal }: { readonly meter: WorkerMeter; readonly signal: AbortSignal | undefined },
): Promise<Started> {
  const askedMs = performance.now();
  try {
    const started = await start(context, spec, signal);
    if (started.alreadyStarted) meter.repeated();
    else meter.started(started.job, performance.now() - askedMs);
    return started;
  } catch (error) {
    meter.refused(error instanceof JobError ? error.code : "internal");
    throw error;
  }
}
