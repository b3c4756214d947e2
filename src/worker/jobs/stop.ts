import { constants } from "node:os";
import { invalid, notFound } from "../model/errors.ts";
import type { Job } from "../model/job.ts";
import { abortSignal, integer, number, shape, text } from "../model/shape.ts";
import { GRACE_MS, order } from "../supervisor/control.ts";
import { signalMain } from "../system/process.ts";
import { withReserve } from "../system/reserve.ts";
import { type Context, find, isTracked } from "./context.ts";
import { doWithout, launchedInTime, rootsOf, seeToEnd } from "./overdue.ts";
import { endOf } from "./tracked-job.ts";

export interface StopOptions {
  /** 1 to 64; SIGTERM when absent. */
  readonly signal?: number;
  /** Time from the signal to SIGKILL; 10 s when absent. */
  readonly graceMs?: number;
  readonly by: string;
}

const checkTypes = shape<StopOptions>({ signal: integer, graceMs: number, by: text }, ["by"]);

export interface Stopped {
  readonly job: Job;
  readonly killed: number;
}

/** Ends a job and waits until it has ended; `waiting` ends only the waiting. Throws JobError: `invalid`, `not-found`, `unavailable`. */
export async function stop(
  context: Context,
  id: string,
  options: StopOptions,
  waiting: AbortSignal | undefined,
): Promise<Stopped> {
  checkTypes("", options);
  if (waiting !== undefined) abortSignal("signal", waiting);
  const { signal = constants.signals.SIGTERM, graceMs = GRACE_MS, by } = options;
  if (!Number.isInteger(signal) || signal < 1 || signal > 64)
    throw invalid("signal", `${signal} is not a signal; give 1 to 64, such as 15 for SIGTERM`);
  if (!(graceMs >= 0 && graceMs <= Number.MAX_SAFE_INTEGER))
    throw invalid("grace", `${graceMs} ms is not a grace period; give 0 or more`);
  const entry = find(context, id);
  if (!isTracked(entry) || entry.job.state === "ended") return { job: entry.job, killed: 0 };
  await launchedInTime(context, entry, graceMs).catch(() => {
    throw notFound(id);
  });
  context.journal.stopping(id, by);
  entry.stoppedBy ??= by;
  if (entry.job.state === "running") entry.job = { ...entry.job, state: "stopping" };
  context.files.later(entry);
  const untold = withReserve(() => order(entry.directory, signal, graceMs, by));
  if (untold !== undefined) {
    doWithout(context, entry, `cannot be told to end it (${untold})`);
    signalMain(rootsOf(entry), context.journal.boot, signal);
  }
  seeToEnd(context, entry, signal === constants.signals.SIGKILL ? 0 : graceMs);
  const job = await endOf(entry, waiting);
  return { job, killed: job.ended?.killed ?? 0 };
}
