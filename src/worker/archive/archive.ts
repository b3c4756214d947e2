import type { Pauses } from "../../os/pause.ts";
import type { Place } from "../model/options.ts";
import { openRetryQueue, type RetryQueue } from "../system/retry-queue.ts";
import { directoryStore } from "./directory.ts";
import type { Store } from "./store.ts";

/** Moves logs into a store. */
export interface Archive extends RetryQueue {
  readonly store: Store;
}

export interface Moves {
  /** Moves a job's log; may be called again after it has failed, or was cut at any point. */
  readonly move: (store: Store, id: string, signal: AbortSignal) => Promise<void>;
  readonly log: (level: "info" | "error", message: string, facts: object) => void;
  readonly pauses?: Pauses | undefined;
}

/** Throws JobError `invalid` when the place lacks something; nobody is called yet. */
export async function openArchive(place: Place, { move, log, pauses }: Moves): Promise<Archive> {
  const store = await openStore(place);
  const queue = openRetryQueue({
    work: (id, signal) => move(store, id, signal),
    told: {
      failed: "logs cannot be archived",
      again: "logs can be archived again",
      facts: { archive: store.place },
    },
    log,
    pauses,
  });
  return {
    ...queue,
    store,
    async [Symbol.asyncDispose]() {
      await queue[Symbol.asyncDispose]();
      store[Symbol.dispose]();
    },
  };
}

async function openStore(place: Place): Promise<Store> {
  if (place.kind === "directory") return directoryStore(place.path);
  // Half a megabyte of code that few daemons need.
  const { openS3 } = await import("./s3.ts");
  return openS3(place);
}
