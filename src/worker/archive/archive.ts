import { setTimeout as delay } from "node:timers/promises";
import { directoryStore } from "./directory.ts";
import { reasonOf, type Place, type Store } from "./store.ts";

/** Between two tries while they fail: the first pause, and the longest. */
export interface Pauses {
  readonly firstMs: number;
  readonly lastMs: number;
}

const PAUSES: Pauses = { firstMs: 1000, lastMs: 5 * 60_000 };

/** Moves logs into a store, one at a time, each until it has worked. Disposing ends a move that is under way. */
export interface Archive extends AsyncDisposable {
  readonly store: Store;
  /** A job's log is to be moved in its turn. */
  add(id: string): void;
}

export interface Moves {
  /** Moves a job's log; may be called again after it has failed, or was cut at any point. */
  readonly move: (store: Store, id: string, signal: AbortSignal) => Promise<void>;
  readonly log: (level: "info" | "error", message: string, facts: object) => void;
  readonly pauses?: Pauses | undefined;
}

/** Throws JobError `invalid` when the place lacks something; nobody is called yet. */
export async function openArchive(place: Place, { move, log, pauses = PAUSES }: Moves): Promise<Archive> {
  const store = await openStore(place);
  const closing = new AbortController();
  const { signal } = closing;
  const waiting = new Set<string>();
  /** Those that a try has failed for. */
  const failed = new Set<string>();
  /** What was said last of why tries fail. */
  let told: string | undefined;
  let moving: Promise<void> | undefined;

  async function moveAll(): Promise<void> {
    let tries = 0;
    for (let id = first(waiting); id !== undefined && !signal.aborted; id = first(waiting)) {
      try {
        await move(store, id, signal);
        waiting.delete(id);
        tries = 0;
        if (failed.delete(id)) tell(undefined);
      } catch (error) {
        if (signal.aborted) break;
        // To the end of the line: what is wrong with one log keeps no other from its turn.
        waiting.delete(id);
        waiting.add(id);
        failed.add(id);
        tell(reasonOf(error), { job: id });
        tries += 1;
        await delay(pauseMs(tries, pauses, Math.random()), undefined, { signal }).catch(() => {});
      }
    }
    moving = undefined; // in one go with finding that nothing waits
  }

  /** Once for each change, not for each try. */
  function tell(reason: string | undefined, facts: object = {}): void {
    if (reason === told) return;
    told = reason;
    const more = { ...facts, archive: store.place, waiting: waiting.size };
    if (reason === undefined) log("info", "logs can be archived again", more);
    else log("error", `logs cannot be archived: ${reason}`, more);
  }

  return {
    store,
    add(id) {
      waiting.add(id);
      moving ??= moveAll();
    },
    async [Symbol.asyncDispose]() {
      closing.abort();
      await moving;
      store[Symbol.dispose]();
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

async function openStore(place: Place): Promise<Store> {
  if (place.kind === "directory") return directoryStore(place.path);
  // Half a megabyte of code that few daemons need.
  const { openS3 } = await import("./s3.ts");
  return openS3(place);
}
