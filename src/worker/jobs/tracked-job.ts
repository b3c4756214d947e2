import { type FSWatcher, watch } from "node:fs";
import { join } from "node:path";
import type { Hierarchy } from "../cgroup/hierarchy.ts";
import { timesFull } from "../cgroup/owner-groups.ts";
import { groupUsage } from "../cgroup/usage.ts";
import { openLog } from "../log/log.ts";
import { JobError } from "../model/errors.ts";
import type { Job, Usage } from "../model/job.ts";
import type { Exit } from "../supervisor/exit.ts";
import { nowMs } from "../system/process.ts";

/** A job from its start, or from being taken up, until its end is on the disk and its group is removed. */
export interface TrackedJob {
  job: Job;
  /** The number of the job's row in the journal; undefined before it has one. */
  seq: number | undefined;
  readonly directory: string;
  /** The job's cgroup, undefined without cgroup v2; and the controllers that measure it. */
  readonly group: string | undefined;
  readonly controllers: ReadonlySet<string>;
  /** How often the memory of all jobs of the owner was full before this one. */
  readonly timesFull: number;
  stoppedBy: string | undefined;
  /** The supervisor's pid; undefined when that is not known. */
  supervisor: number | undefined;
  /** The supervisor is known to be gone, and the job's end is being recorded. */
  gone: boolean;
  /** When this process ends a job that is being stopped in its supervisor's place (overdue.ts), on the clock of nowMs(). */
  dueMs: number;
  overdue?: NodeJS.Timeout;
  /** Set when the supervisor does not answer: how many processes this one killed, and the reason to give without an exit record. */
  unanswered?: { killed: number; readonly lost: string };
  /** When the command was exec'ed, in ms of CLOCK_MONOTONIC, as nowMs(); undefined when that is not known. */
  startedMs: number | undefined;
  requestId: string | undefined;
  /** Resolved once the command has been exec'ed, rejected when it could not be. */
  readonly launched: PromiseWithResolvers<void>;
  readonly ended: PromiseWithResolvers<Job>;
  /** Resolved once the job is tracked no more. */
  readonly untracked: PromiseWithResolvers<void>;
  /** Callers of endOf(); undefined once `ended` is settled. */
  waiting: Set<PromiseWithResolvers<Job>> | undefined;
  /** Called when there may be more output, or at the end. */
  readonly followers: Set<() => void>;
  /** Settles when the last update that was asked for is done. */
  updates: Promise<unknown>;
  /** Settles when the job's group is removed, once that has begun. */
  away: Promise<void>;
  watcher?: FSWatcher;
}

/** Each waiter writes an answer: thousands in one turn would hold the event loop. */
const WAITERS_IN_A_TURN = 16;

export function trackedJob(job: Job, jobsDir: string, hierarchy: Hierarchy): TrackedJob {
  const entry: TrackedJob = {
    job,
    seq: undefined,
    directory: join(jobsDir, job.id),
    group: hierarchy.kind === "cgroup2" ? join(hierarchy.path, job.id) : undefined,
    controllers: hierarchy.kind === "cgroup2" ? hierarchy.controllers : new Set(),
    timesFull: hierarchy.kind === "cgroup2" ? timesFull(hierarchy.path) : 0,
    stoppedBy: undefined,
    supervisor: undefined,
    gone: false,
    dueMs: Infinity,
    startedMs: undefined,
    requestId: undefined,
    launched: Promise.withResolvers(),
    ended: Promise.withResolvers(),
    untracked: Promise.withResolvers(),
    waiting: new Set(),
    followers: new Set(),
    updates: Promise.resolve(),
    away: Promise.resolve(),
  };
  entry.launched.promise.catch(() => {});
  const settle = (how: (each: PromiseWithResolvers<Job>) => void): void => {
    const waiting = entry.waiting ?? new Set();
    entry.waiting = undefined;
    // A waiter that gives up meanwhile removes itself from the set.
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

/** The job with its present figures; or as it ended, which may be known only here until the disk has it. */
export function current(entry: TrackedJob): Job {
  if (entry.job.state === "ended") return entry.job;
  return { ...entry.job, usage: usageOf(entry), output: extentOf(entry) };
}

/** What the job has used: from its cgroup, or from the exit record when the cgroup is gone. */
export function usageOf(entry: TrackedJob, exit?: Exit): Usage {
  const elapsedMs = exit ? Number(exit.get("elapsed_ns")) / 1e6 : sinceStartMs(entry);
  if (entry.group !== undefined) {
    try {
      return { elapsedMs, ...groupUsage(entry.group, entry.controllers) };
    } catch {
      // The group is gone: after a reboot, or because somebody removed it.
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

/** Falls back to the wall clock when the monotonic start time is not known. */
function sinceStartMs({ startedMs, job: { startedAt } }: TrackedJob): number {
  const elapsedMs = startedMs === undefined ? Date.now() - (startedAt?.getTime() ?? Date.now()) : nowMs() - startedMs;
  return Math.max(0, elapsedMs);
}

export function extentOf(entry: TrackedJob): Job["output"] {
  try {
    using output = openLog(entry.directory);
    return output.extent();
  } catch {
    return entry.job.output;
  }
}

/** The jobs whose logs are watched, and how many events have come for them in this turn of the event loop. */
const watched = new Set<TrackedJob>();
let told = 0;
/** The kernel queues 16,384 events by default and drops the rest; Node does not tell of IN_Q_OVERFLOW (inotify(7)). */
const MANY_EVENTS = 4096;

/** Wakes a job's followers. When very many events come at once, some may have been dropped, so all followers are woken. */
function hear(entry: TrackedJob): void {
  if (++told === 1) setImmediate(() => (told = 0));
  for (const each of told % MANY_EVENTS === 0 ? watched : [entry]) for (const wake of each.followers) wake();
}

/** Calls `wake` whenever there may be more output, and at the end, until disposed. A job's followers share one watch. */
export function subscribe(entry: TrackedJob, wake: () => void): Disposable {
  entry.watcher ??= watch(join(entry.directory, "output"), () => hear(entry)).on("error", () => hear(entry));
  watched.add(entry);
  return awaitEnd(entry, wake);
}

export function unwatch(entry: TrackedJob): void {
  entry.watcher?.close();
  delete entry.watcher;
  watched.delete(entry);
}

/** Calls `wake` at the end, and perhaps earlier, until disposed. */
export function awaitEnd(entry: TrackedJob, wake: () => void): Disposable {
  entry.followers.add(wake);
  return {
    [Symbol.dispose]() {
      entry.followers.delete(wake);
      if (entry.followers.size > 0) return;
      unwatch(entry);
    },
  };
}

/** Resolves to the job when it has ended. `signal` ends the waiting with `unavailable`, which leaves nothing behind. */
export async function endOf(entry: TrackedJob, signal: AbortSignal | undefined): Promise<Job> {
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
