import { statfsSync } from "node:fs";
import { setImmediate as nextTurn } from "node:timers/promises";
import { reasonOf } from "../../os/errno.ts";
import type { Local, LogRecords } from "../journal/log-records.ts";
import type { PruneReason } from "../model/job.ts";
import type { PruneLimits } from "../model/options.ts";

export type Prune = (id: string, why: PruneReason) => Promise<void>;

interface Parts {
  readonly limits: PruneLimits;
  readonly jobsDir: string;
  readonly logs: LogRecords;
  /** There is an archive: logs that wait for it are not lost before. */
  readonly archiving: boolean;
  /** False while it is not known which those are. */
  readonly ready: () => boolean;
  /** The log that is being compressed: it has its turn when it is looked at again, and no newer one goes in its place. */
  readonly busy: () => string | undefined;
  readonly prune: Prune;
  readonly log: (level: "info" | "error", message: string, facts: object) => void;
}

export interface Pruner extends AsyncDisposable {
  /** There may be something to prune. */
  run(): void;
}

/** Logs in one go; between them others have their turn. */
const BATCH = 64;
const FREE_EVERY_MS = 30_000;
const DAY_MS = 86_400_000;
/** Looking costs more with many logs: it takes this part of the time at most. */
const IDLE_SHARE = 20;

export function openPruner({ limits, jobsDir, logs, archiving, ready, busy, prune, log }: Parts): Pruner {
  const { ageMs, count, bytes, free, freeEveryMs = FREE_EVERY_MS } = limits;
  let closed = false;
  let again = false;
  let running: Promise<void> | undefined;
  let expiry: NodeJS.Timeout | undefined;
  let pause: NodeJS.Timeout | undefined;
  // The kernel tells nobody that a disk fills.
  const looking = free && setInterval(run, freeEveryMs).unref();

  const oldest = (limit: number): Local[] => logs.oldest(Math.min(limit, BATCH), archiving);
  const notBusy = (found: Local[]): Local[] => found.filter(({ id }) => id !== busy());

  /** The oldest that take so much together. */
  function worth(excess: number): Local[] {
    const found: Local[] = [];
    let left = excess;
    if (left > 0)
      for (const each of oldest(BATCH)) {
        if (left <= 0) break;
        found.push(each);
        left -= each.bytes;
      }
    return found;
  }

  /** Looks once: some file systems have the room only a while after the files went. `gone`: the bytes of those. */
  function lacking(gone: () => number): () => Local[] {
    if (!free) return () => [];
    const { bavail, blocks, bsize } = statfsSync(jobsDir);
    const wanted = free.kind === "bytes" ? free.amount : (blocks * bsize * free.amount) / 100;
    return () => worth(wanted - bavail * bsize - gone());
  }

  /** What each limit wants pruned; asked again until it is nothing. */
  const wants = (gone: () => number): readonly (readonly [PruneReason, () => Local[]])[] => [
    ["keep-for", () => logs.expiring(BATCH, archiving).filter(({ untilMs }) => untilMs <= Date.now())],
    ["age", () => (ageMs === undefined ? [] : oldest(BATCH).filter(({ endedMs }) => endedMs + ageMs <= Date.now()))],
    ["count", () => (count === undefined ? [] : oldest(Math.max(0, logs.local().count - count)))],
    ["size", () => (bytes === undefined ? [] : worth(logs.local().bytes - bytes))],
    ["free", lacking(gone)],
  ];

  async function pruneAll(): Promise<void> {
    let gone = 0;
    for (const [why, find] of wants(() => gone)) {
      for (let found = notBusy(find()); found.length > 0 && !closed; found = notBusy(find())) {
        for (const { id, bytes: freed } of found) {
          if (id === busy()) continue; // its turn has come since
          await prune(id, why);
          gone += freed;
          log("info", "a log was pruned", { job: id, why });
        }
        await nextTurn();
      }
    }
  }

  /** At the earliest end of what is kept by time. */
  function wait(): void {
    clearTimeout(expiry);
    const ends = notBusy(logs.expiring(2, archiving)).map(({ untilMs }) => untilMs);
    if (ageMs !== undefined) ends.push(...notBusy(oldest(2)).map(({ endedMs }) => endedMs + ageMs));
    if (ends.length > 0 && !closed)
      expiry = setTimeout(run, Math.min(Math.max(0, Math.min(...ends) - Date.now()), DAY_MS)).unref();
  }

  function run(): void {
    again = true;
    if (closed || running || pause || !ready()) return;
    again = false;
    const before = performance.now();
    running = pruneAll()
      .then(wait)
      .catch((error: unknown) => {
        log("error", `logs cannot be pruned: ${reasonOf(error)}`, {});
        clearTimeout(expiry);
        if (!closed) expiry = setTimeout(run, FREE_EVERY_MS).unref();
      })
      .finally(() => {
        running = undefined;
        if (closed) return;
        pause = setTimeout(
          () => {
            pause = undefined;
            if (again) run();
          },
          Math.min((performance.now() - before) * IDLE_SHARE, freeEveryMs),
        ).unref();
      });
  }

  return {
    run,
    async [Symbol.asyncDispose]() {
      closed = true;
      clearInterval(looking);
      clearTimeout(expiry);
      clearTimeout(pause);
      await running;
    },
  };
}
