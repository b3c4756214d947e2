import { setImmediate as nextTurn, setTimeout as delay } from "node:timers/promises";
import { reasonOf } from "../../os/errno.ts";
import { pauseAfter, type Pauses } from "../../os/pause.ts";

const PAUSES: Pauses = { firstMs: 1000, lastMs: 5 * 60_000 };

/** Jobs whose logs wait for something, one at a time, each until it has worked. Disposing ends what is under way. */
export interface RetryQueue extends AsyncDisposable {
  add(id: string): void;
  /** How many have not had a turn in which it worked. */
  waiting(): number;
  /** Takes an id out. Resolves when nothing is under way with it any more. */
  drop(id: string): Promise<void>;
  /** Returns the id whose turn it is. */
  busy(): string | undefined;
}

interface Work {
  /** Is called again when it has failed, or was cut at any point. */
  readonly work: (id: string, signal: AbortSignal) => Promise<void>;
  /** What is logged on the first failure and on each new reason (`failed`), and on recovery (`again`). */
  readonly told: { readonly failed: string; readonly again: string; readonly facts?: object };
  readonly log: (level: "info" | "error", message: string, facts: object) => void;
  readonly pauses?: Pauses | undefined;
}

interface Turn {
  readonly id: string;
  readonly done: Promise<void>;
  /** Ends the turn. Resolves when nothing of it is under way. */
  readonly cut: () => Promise<void>;
}

function begin(id: string, work: Work["work"]): Turn {
  const ending = new AbortController();
  const done = work(id, ending.signal);
  return {
    id,
    done,
    async cut() {
      ending.abort();
      await done.catch(() => {}); // whose turn it is hears of it
    },
  };
}

export function openRetryQueue({ work, told, log, pauses = PAUSES }: Work): RetryQueue {
  const closing = new AbortController();
  const { signal } = closing;
  const waiting = new Set<string>();
  const failed = new Set<string>();
  const tell = outagesToldBy(told, log);
  let working: Promise<void> | undefined;
  let current: Turn | undefined;

  /** Gives one id its turn. Returns what it failed with. */
  async function turn(id: string): Promise<unknown> {
    try {
      current = begin(id, work);
      await current.done;
      waiting.delete(id);
      if (failed.delete(id)) tell(undefined, { waiting: waiting.size });
      return undefined;
    } catch (error) {
      return error ?? new Error("no reason given");
    } finally {
      current = undefined;
    }
  }

  async function workAll(): Promise<void> {
    let failures = 0;
    for (let [id] = waiting; id !== undefined && !signal.aborted; [id] = waiting) {
      const error = await turn(id);
      if (error === undefined) {
        failures = 0;
        await nextTurn(); // others come before the next log
      } else if (!signal.aborted && waiting.delete(id)) {
        // A failure goes to the end of the queue, so that one log keeps no other from its turn.
        waiting.add(id);
        failed.add(id);
        tell(reasonOf(error), { job: id, waiting: waiting.size });
        await delay(pauseAfter(++failures, pauses, Math.random()), undefined, { signal }).catch(() => {});
      }
    }
    working = undefined; // in the same turn of the event loop in which nothing was found to wait
  }

  return {
    add(id) {
      if (!signal.aborted) waiting.add(id);
      working ??= workAll();
    },
    waiting: () => waiting.size,
    async drop(id) {
      for (const ids of [waiting, failed]) ids.delete(id);
      if (current?.id === id) await current.cut();
    },
    busy: () => current?.id,
    async [Symbol.asyncDispose]() {
      closing.abort();
      await current?.cut();
      await working;
    },
  };
}

/** Returns a function that is told why each try fails (undefined: it works), and logs each change of that once. */
function outagesToldBy(
  { failed, again, facts }: Work["told"],
  log: Work["log"],
): (reason: string | undefined, more: object) => void {
  let last: string | undefined;
  return (reason, more) => {
    if (reason === last) return;
    last = reason;
    if (reason === undefined) log("info", again, { ...more, ...facts });
    else log("error", `${failed}: ${reason}`, { ...more, ...facts });
  };
}
