import type { JobRecord } from "../journal/record.ts";
import { invalid } from "../model/errors.ts";
import type { Job, Usage } from "../model/job.ts";
import { abortSignal, number, shape } from "../model/shape.ts";
import { type Context, find, isTracked } from "./context.ts";
import { awaitEnd, current, type TrackedJob, usageOf } from "./tracked-job.ts";

export interface StatsOptions {
  /** Time from one sample to the next, from 100 ms to a day; 1 s when absent. */
  readonly intervalMs?: number;
  /** Ends the samples. */
  readonly signal?: AbortSignal;
}

const checkTypes = shape<StatsOptions>({ intervalMs: number, signal: abortSignal });

/** Samples of what a job uses. Returns the job at the end of the samples: ended, unless the signal ended them. */
export type Stats = AsyncGenerator<Usage, Job>;

const INTERVAL_MS = 1000;
const LEAST_INTERVAL_MS = 100;
const LONGEST_INTERVAL_MS = 24 * 3600 * 1000;

/** Samples what a job uses, at an interval. Throws at once, not at the first sample: `invalid` for the interval, `not-found`. */
export function stats(context: Context, id: string, options: StatsOptions): Stats {
  checkTypes("", options);
  const { intervalMs = INTERVAL_MS, signal } = options;
  if (!(intervalMs >= LEAST_INTERVAL_MS && intervalMs <= LONGEST_INTERVAL_MS))
    throw invalid("interval", `${intervalMs} ms is not an interval; give 100 ms to 1 day`);
  return sample(context, find(context, id), intervalMs, signal);
}

/** Takes a sample only when the reader asks for one, so that a slow reader gets fewer of them. */
async function* sample(
  context: Context,
  entry: TrackedJob | JobRecord,
  intervalMs: number,
  signal: AbortSignal | undefined,
): Stats {
  if (!isTracked(entry)) return entry.job;
  const over = (): boolean => context.closed || entry.job.state === "ended" || signal?.aborted === true;
  let release = (): void => {};
  const wake = (): void => {
    if (over()) release();
  };
  using _waiting = awaitEnd(entry, wake);
  signal?.addEventListener("abort", wake);
  try {
    while (!over()) {
      const takenMs = performance.now();
      yield usageOf(entry);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, Math.max(0, takenMs + intervalMs - performance.now()));
        release = () => {
          clearTimeout(timer);
          resolve();
        };
        wake();
      });
    }
    return entry.job.state === "ended" ? entry.job : current(entry);
  } finally {
    signal?.removeEventListener("abort", wake);
  }
}
