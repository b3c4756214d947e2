import type { EndedRow } from "../journal/removals.ts";
import type { Parts } from "./remove.ts";
import { BATCH, openRemoval, type Removal } from "./removal.ts";
import { openSchedule } from "./schedule.ts";

/* The records of ended jobs: how many there are, and for how long. Those that ended first go first. */

export interface Records extends AsyncDisposable {
  readonly remove: Removal["remove"];
  /** One job more has ended. */
  ended(): void;
  /** How many jobs have ended and are kept; undefined while nobody had to count them. */
  kept(): number | undefined;
  /** Looks whether there is a job to remove. */
  run(): void;
  /** The options have changed. */
  renew(): void;
}

interface Others {
  /** False while nobody knows which logs wait for the archive. */
  readonly ready: () => boolean;
  /** Takes a log from those that something is yet to be done with. */
  readonly drop: (id: string) => Promise<void>;
}

const PAUSE_MS = 30_000;

/** Goes on with what an earlier daemon has left, too. Disposing ends what is under way. */
export function openRecords(parts: Parts, { ready, drop }: Others): Records {
  const removal = openRemoval(parts, drop);
  const known = countOf(parts);
  const schedule = openSchedule({
    async work(signal) {
      await removal.resume(signal);
      return expire(parts, { remove, known, signal });
    },
    ready,
    failed: (reason) => parts.options.log("error", `jobs cannot be removed: ${reason}`, {}),
    pauseMs: () => PAUSE_MS,
    everyMs: () => undefined,
  });

  async function remove(ids: readonly string[], archived: boolean): Promise<string[]> {
    const removed = await removal.remove(ids, archived);
    known.add(-removed.length);
    return removed;
  }

  const run = (): void => {
    if (parts.options.jobPrune) schedule.run();
  };

  schedule.renew();
  return {
    remove,
    kept: () => known.known(),
    run,
    renew: () => schedule.renew(),
    ended() {
      known.add(1);
      run();
    },
    async [Symbol.asyncDispose]() {
      await schedule[Symbol.asyncDispose]();
      await removal[Symbol.asyncDispose]();
    },
  };
}

interface Count {
  /** How many jobs have ended. */
  get(): number;
  /** The same, undefined where that would have to be found out first. */
  known(): number | undefined;
  add(change: number): void;
}

/** Counts the jobs once, when that is asked for: a million take 0.1 s. */
function countOf({ journal }: Parts): Count {
  let known: number | undefined;
  return {
    get: () => (known ??= journal.removals.countEnded()),
    known: () => known,
    add(change) {
      if (known !== undefined) known += change;
    },
  };
}

/** Removes jobs until no limit is exceeded. Resolves to when the next one is too old, in ms since the epoch. */
async function expire(
  { archive, held, journal, options }: Parts,
  {
    remove,
    known,
    signal,
  }: { readonly remove: Removal["remove"]; readonly known: Count; readonly signal: AbortSignal },
): Promise<number> {
  const { ageMs = Infinity, count = Infinity, archived = false } = options.jobPrune ?? {};
  // A job whose end is not told yet is looked at again after that.
  const oldest = (limit: number): EndedRow[] =>
    journal.removals.endedFirst(limit, archive !== undefined).filter(({ id }) => !held(id));
  const excesses = [
    ["age", () => (ageMs === Infinity ? [] : oldest(BATCH).filter(({ endedMs }) => endedMs + ageMs <= Date.now()))],
    ["count", () => (count === Infinity ? [] : oldest(Math.max(0, Math.min(BATCH, known.get() - count))))],
  ] as const;
  for (const [why, find] of excesses) {
    let gone = 0;
    for (let found = find(); found.length > 0 && !signal.aborted; found = find()) {
      const removed = await remove(
        found.map(({ id }) => id),
        archived,
      );
      if (removed.length === 0) break;
      gone += removed.length;
    }
    if (gone > 0) options.log("info", "jobs that had ended were removed", { count: gone, why });
  }
  const [first] = ageMs === Infinity ? [] : oldest(1);
  return first ? first.endedMs + ageMs : Infinity;
}
