import { find, isRunning, type Context } from "./context.ts";
import { invalid } from "./errors.ts";
import type { Job, Usage } from "./job.ts";
import type { Record as Kept } from "./journal.ts";
import { awaitEnd, current, usageOf, type Running } from "./running.ts";

export interface StatsOptions {
  /** From one sample to the next, 100 to a day's; 1000 when absent. */
  readonly intervalMs?: number;
  /** Ends the samples. */
  readonly signal?: AbortSignal;
}

/** What a job uses, at an interval. Returns the job as it is then: ended, unless the samples were given up. */
export type Stats = AsyncGenerator<Usage, Job>;

const INTERVAL_MS = 1000;
const LEAST_INTERVAL_MS = 100;
const LONGEST_INTERVAL_MS = 24 * 3600 * 1000;

/** Throws at once, not at the first sample: `invalid` for the interval, `not-found`. */
export function stats(context: Context, id: string, { intervalMs = INTERVAL_MS, signal }: StatsOptions): Stats {
  if (!(intervalMs >= LEAST_INTERVAL_MS && intervalMs <= LONGEST_INTERVAL_MS))
    throw invalid("interval", `${intervalMs} ms is none; 100 ms to 1 day are`);
  return sample(context, find(context, id), intervalMs, signal);
}

/** Takes a sample only when it is asked for one, so that whoever is slow has fewer of them. */
async function* sample(
  context: Context,
  entry: Running | Kept,
  intervalMs: number,
  signal: AbortSignal | undefined,
): Stats {
  if (!isRunning(entry)) return entry.job;
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
