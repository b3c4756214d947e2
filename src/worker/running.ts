import { type FSWatcher, watch } from "node:fs";
import { join } from "node:path";
import { codeOf } from "../os/errno.ts";
import type { Hierarchy } from "./cgroup.ts";
import { JobError } from "./errors.ts";
import type { Exit } from "./exit.ts";
import type { Job, Usage } from "./job.ts";
import { openLog, type Log } from "./log.ts";
import { nowMs } from "./process.ts";
import { groupUsage } from "./usage.ts";

/** A job that has not ended, as this process knows it. */
export interface Running {
  job: Job;
  readonly directory: string;
  /** Its cgroup, where the host has them, and the controllers that measure it. */
  readonly group: string | undefined;
  readonly controllers: ReadonlySet<string>;
  stoppedBy: string | undefined;
  /** Its supervisor's pid; undefined where nobody knows. */
  supervisor: number | undefined;
  /** Its supervisor is known to be gone, and its end is being recorded. */
  gone: boolean;
  /** While it is being stopped: when this process ends it instead of its supervisor (overdue.ts), as nowMs() has it. */
  dueMs: number;
  overdue?: NodeJS.Timeout;
  /** Its supervisor does not take orders: how many processes were killed here, why it is lost if there is no exit record. */
  unanswered?: { killed: number; readonly lost: string };
  /** When it was exec'ed, in ms of CLOCK_MONOTONIC, which all processes share until the next boot: process.hrtime(). */
  startedMs: number | undefined;
  requestId: string | undefined;
  /** Resolved once the command has been exec'ed, rejected when it could not be. */
  readonly launched: PromiseWithResolvers<void>;
  readonly ended: PromiseWithResolvers<Job>;
  /** Who waits for `ended`; undefined once that is settled. */
  waiting: Set<PromiseWithResolvers<Job>> | undefined;
  /** What to call when there may be more output, or the end. */
  readonly followers: Set<() => void>;
  /** Settled when the last update that was asked for is done. */
  updates: Promise<unknown>;
  watcher?: FSWatcher;
}

/** Each of them has an answer to write: thousands would hold the event loop. */
const WAITERS_IN_A_TURN = 16;

export function runningOf(job: Job, jobsDir: string, hierarchy: Hierarchy): Running {
  const entry: Running = {
    job,
    directory: join(jobsDir, job.id),
    group: hierarchy.kind === "cgroup2" ? join(hierarchy.path, job.id) : undefined,
    controllers: hierarchy.kind === "cgroup2" ? hierarchy.controllers : new Set(),
    stoppedBy: undefined,
    supervisor: undefined,
    gone: false,
    dueMs: Infinity,
    startedMs: undefined,
    requestId: undefined,
    launched: Promise.withResolvers(),
    ended: Promise.withResolvers(),
    waiting: new Set(),
    followers: new Set(),
    updates: Promise.resolve(),
  };
  entry.launched.promise.catch(() => {});
  const settle = (how: (each: PromiseWithResolvers<Job>) => void): void => {
    const waiting = entry.waiting ?? new Set();
    entry.waiting = undefined;
    // Whoever gave up meanwhile is not in it any more.
    const some = (): void => {
      for (const each of waiting.values().take(WAITERS_IN_A_TURN)) {
        waiting.delete(each);
        how(each);
      }
      if (waiting.size > 0) setImmediate(some);
    };
    some();
  };
  entry.ended.promise.then(
    (ended) => settle(({ resolve }) => resolve(ended)),
    (error: unknown) => settle(({ reject }) => reject(error)),
  );
  return entry;
}

/** The job with its figures of now; of one that has ended, as it ended: that may not be on the disk yet, and known here alone. */
export function current(entry: Running): Job {
  if (entry.job.state === "ended") return entry.job;
  return { ...entry.job, usage: usageOf(entry), output: extentOf(entry) };
}

/** By the cgroup, which is to be there still; else by the exit record, once there is one. */
export function usageOf(entry: Running, exit?: Exit): Usage {
  const elapsedMs = exit ? Number(exit.get("elapsed_ns")) / 1e6 : sinceStartMs(entry);
  if (entry.group !== undefined) {
    try {
      return { elapsedMs, ...groupUsage(entry.group, entry.controllers) };
    } catch {
      // The group is gone: after a reboot, or removed under us.
    }
  }
  const cpu = { cpuUserUs: Number(exit?.get("user_us") ?? 0), cpuSystemUs: Number(exit?.get("system_us") ?? 0) };
  return {
    elapsedMs,
    ...cpu,
    ...(exit && { memoryPeakBytes: Number(exit.get("max_rss_bytes")) }),
    fromCgroup: false,
  };
}

/** By the wall clock only for a job whose log is of a release that did not keep the other, and for one that a reboot took. */
function sinceStartMs({ startedMs, job: { startedAt } }: Running): number {
  const elapsedMs = startedMs === undefined ? Date.now() - (startedAt?.getTime() ?? Date.now()) : nowMs() - startedMs;
  return Math.max(0, elapsedMs);
}

export function extentOf(entry: Running): Job["output"] {
  try {
    using output = openLog(entry.directory);
    return output.extent();
  } catch {
    return entry.job.output;
  }
}

/** The pids and the times of its exec; undefined when that has not happened. Throws when that cannot be read. */
export function startOf(entry: Pick<Running, "directory">): ReturnType<Log["header"]>["started"] {
  try {
    using output = openLog(entry.directory);
    return output.header().started;
  } catch (error) {
    if (codeOf(error) === "ENOENT") return undefined;
    throw error;
  }
}

/** Those that are watched, and how often the kernel has told of any in this turn. */
const watched = new Set<Running>();
let told = 0;
/** By default the kernel keeps 16,384 events, and drops more; that it did, Node does not tell (inotify(7), IN_Q_OVERFLOW). */
const MANY_EVENTS = 4096;

/** Where many are told at once, others may have been dropped: all that are watched are woken. */
function hear(entry: Running): void {
  if (++told === 1) setImmediate(() => (told = 0));
  for (const each of told % MANY_EVENTS === 0 ? watched : [entry]) for (const wake of each.followers) wake();
}

/** Calls `wake` whenever there may be more output, or the end, until disposed. One watch serves all. */
export function subscribe(entry: Running, wake: () => void): Disposable {
  entry.watcher ??= watch(join(entry.directory, "output"), () => hear(entry)).on("error", () => hear(entry));
  watched.add(entry);
  return awaitEnd(entry, wake);
}

export function unwatch(entry: Running): void {
  entry.watcher?.close();
  delete entry.watcher;
  watched.delete(entry);
}

/** Calls `wake` at the end, and perhaps before, until disposed. */
export function awaitEnd(entry: Running, wake: () => void): Disposable {
  entry.followers.add(wake);
  return {
    [Symbol.dispose]() {
      entry.followers.delete(wake);
      if (entry.followers.size > 0) return;
      unwatch(entry);
    },
  };
}

/** Resolves when the job has ended; `signal` ends the waiting, which throws `unavailable`. Nothing of it is left then. */
export async function endOf(entry: Running, signal: AbortSignal | undefined): Promise<Job> {
  const { waiting } = entry;
  if (!waiting) return entry.ended.promise;
  const waiter = Promise.withResolvers<Job>();
  const stop = (): void => waiter.reject(new JobError("unavailable", "the waiting was given up"));
  if (signal?.aborted) stop();
  signal?.addEventListener("abort", stop);
  waiting.add(waiter);
  try {
    return await waiter.promise;
  } finally {
    waiting.delete(waiter);
    signal?.removeEventListener("abort", stop);
  }
}
