import { statfsSync } from "node:fs";
import { setImmediate as nextTurn } from "node:timers/promises";
import type { Local, LogRecords } from "../journal/log-records.ts";
import type { PruneReason } from "../model/job.ts";
import type { PruneLimits } from "../model/options.ts";
import { openSchedule, type Schedule } from "./schedule.ts";

/* What ended jobs' logs may take together. The logs of the jobs that ended first go first. */

export type Prune = (id: string, why: PruneReason) => Promise<void>;

interface Parts {
  readonly limits: PruneLimits;
  readonly jobsDir: string;
  readonly logs: LogRecords;
  /** There is an archive: no log that waits for it is pruned. */
  readonly archiving: boolean;
  /** False while nobody knows which logs wait for the archive. */
  readonly ready: () => boolean;
  /** The log that is being compressed, which is looked at again after that; no newer log goes in its place. */
  readonly busy: () => string | undefined;
  readonly prune: Prune;
  readonly log: (level: "info" | "error", message: string, facts: object) => void;
}

/** How many logs are pruned before others have their turn. */
const BATCH = 64;
const FREE_EVERY_MS = 30_000;

/** Disposing ends what is under way. */
export function openPruner(parts: Parts): Schedule {
  const everyMs = (): number => parts.limits.freeEveryMs ?? FREE_EVERY_MS;
  return openSchedule({
    async work(signal) {
      await pruneAll(parts, signal);
      return firstEndMs(parts);
    },
    ready: parts.ready,
    failed: (reason) => parts.log("error", `logs cannot be pruned: ${reason}`, {}),
    pauseMs: everyMs,
    everyMs: () => parts.limits.free && everyMs(), // no kernel tells when a disk fills
  });
}

/** Prunes until no limit is exceeded. */
async function pruneAll(parts: Parts, signal: AbortSignal): Promise<void> {
  const { busy, log, prune } = parts;
  let gone = 0;
  for (const [why, find] of excesses(parts, () => gone)) {
    for (let found = idle(parts, find()); found.length > 0 && !signal.aborted; found = idle(parts, find())) {
      for (const { id, bytes } of found) {
        if (id === busy()) continue; // its turn to be compressed has come since
        await prune(id, why);
        gone += bytes;
        log("info", "a log was pruned", { job: id, why });
      }
      await nextTurn();
    }
  }
}

function idle({ busy }: Parts, found: readonly Local[]): Local[] {
  return found.filter(({ id }) => id !== busy());
}

/** Returns, for each limit, a search for logs that exceed it. `gone`: how many bytes have been pruned meanwhile. */
function excesses(parts: Parts, gone: () => number): readonly (readonly [PruneReason, () => readonly Local[]])[] {
  const { archiving, limits, logs } = parts;
  const { ageMs = Infinity, count = Infinity, bytes = Infinity } = limits;
  const oldest = (limit: number): Local[] => logs.oldest(Math.max(0, Math.min(limit, BATCH)), archiving);
  const lacking = lackingBytes(parts);
  return [
    ["keep-for", () => logs.expiring(BATCH, archiving).filter(({ untilMs }) => untilMs <= Date.now())],
    ["age", () => (ageMs === Infinity ? [] : oldest(BATCH).filter(({ endedMs }) => endedMs + ageMs <= Date.now()))],
    ["count", () => (count === Infinity ? [] : oldest(logs.local().count - count))],
    ["size", () => (bytes === Infinity ? [] : worth(oldest, logs.local().bytes - bytes))],
    ["free", () => worth(oldest, lacking - gone())],
  ];
}

/** Returns the oldest logs that take so many bytes together. */
function worth(oldest: (limit: number) => readonly Local[], bytes: number): Local[] {
  const found: Local[] = [];
  let left = bytes;
  for (const each of left > 0 ? oldest(BATCH) : []) {
    if (left <= 0) break;
    found.push(each);
    left -= each.bytes;
  }
  return found;
}

/** Returns how many bytes the disk lacks. It is asked once: some file systems have the room only a while after the files went. */
function lackingBytes({ limits: { free }, jobsDir }: Parts): number {
  if (!free) return 0;
  const { bavail, blocks, bsize } = statfsSync(jobsDir);
  const wanted = free.kind === "bytes" ? free.amount : (blocks * bsize * free.amount) / 100;
  return wanted - bavail * bsize;
}

/** Returns when the first log is to go by its age, or by its job's own policy; Infinity when none is. */
function firstEndMs(parts: Parts): number {
  const { archiving, limits, logs } = parts;
  const { ageMs = Infinity } = limits;
  return Math.min(
    ...idle(parts, logs.expiring(2, archiving)).map(({ untilMs }) => untilMs),
    ...(ageMs === Infinity ? [] : idle(parts, logs.oldest(2, archiving)).map(({ endedMs }) => endedMs + ageMs)),
  );
}
