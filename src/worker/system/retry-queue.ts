import { setImmediate as nextTurn, setTimeout as delay } from "node:timers/promises";
import { reasonOf } from "../../os/errno.ts";
import type { Pauses } from "../model/options.ts";

export const PAUSES: Pauses = { firstMs: 1000, lastMs: 5 * 60_000 };

/** Jobs whose logs wait for something, one at a time, each until it has worked. Disposing ends what is under way. */
export interface RetryQueue extends AsyncDisposable {
  add(id: string): void;
  /** Whose turn it is. */
  busy(): string | undefined;
}

interface Work {
  /** May be called again after it has failed, or was cut at any point. */
  readonly work: (id: string, signal: AbortSignal) => Promise<void>;
  /** Of the first failure, and of each other reason; then of the first that works again. */
  readonly told: { readonly failed: string; readonly again: string; readonly facts?: object };
  readonly log: (level: "info" | "error", message: string, facts: object) => void;
  readonly pauses?: Pauses | undefined;
}

export function openRetryQueue({ work, told, log, pauses = PAUSES }: Work): RetryQueue {
  const closing = new AbortController();
  const { signal } = closing;
  const waiting = new Set<string>();
  /** Those that a try has failed for. */
  const failed = new Set<string>();
  /** What was said last of why tries fail. */
  let reason: string | undefined;
  let working: Promise<void> | undefined;
  let busy: string | undefined;

  async function workAll(): Promise<void> {
    let tries = 0;
    for (let id = first(waiting); id !== undefined && !signal.aborted; id = first(waiting)) {
      busy = id;
      try {
        await work(id, signal);
        busy = undefined;
        waiting.delete(id);
        tries = 0;
        if (failed.delete(id)) tell(undefined);
        await nextTurn(); // a log that is left as it is waits for nothing else
      } catch (error) {
        if (signal.aborted) break;
        // To the end of the line: what is wrong with one log keeps no other from its turn.
        waiting.delete(id);
        waiting.add(id);
        failed.add(id);
        tell(reasonOf(error), { job: id });
        tries += 1;
        busy = undefined;
        await delay(pauseMs(tries, pauses, Math.random()), undefined, { signal }).catch(() => {});
      }
    }
    busy = undefined;
    working = undefined; // in one go with finding that nothing waits
  }

  /** Once for each change, not for each try. */
  function tell(now: string | undefined, facts: object = {}): void {
    if (now === reason) return;
    reason = now;
    const more = { ...facts, ...told.facts, waiting: waiting.size };
    if (now === undefined) log("info", told.again, more);
    else log("error", `${told.failed}: ${now}`, more);
  }

  return {
    add(id) {
      if (signal.aborted) return;
      waiting.add(id);
      working ??= workAll();
    },
    busy: () => busy,
    async [Symbol.asyncDispose]() {
      closing.abort();
      await working;
    },
  };
}

/** After so many failures in a row; `chance`, 0 to 1, keeps many daemons from coming back at the same moment. */
export function pauseMs(tries: number, { firstMs, lastMs }: Pauses, chance: number): number {
  return Math.min(firstMs * 2 ** (tries - 1), lastMs) * (0.5 + chance / 2);
}

function first<T>(set: ReadonlySet<T>): T | undefined {
  for (const each of set) return each;
  return undefined;
}
