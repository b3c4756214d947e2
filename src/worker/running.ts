import { type FSWatcher, watch } from "node:fs";
import { join } from "node:path";
import type { Hierarchy } from "./cgroup.ts";
import { JobError, codeOf } from "./errors.ts";
import type { Exit } from "./exit.ts";
import type { Job, Usage } from "./job.ts";
import { openLog, type Log } from "./log.ts";
import { groupUsage } from "./usage.ts";

/** A job that has not ended, as this process knows it. */
export interface Running {
  job: Job;
  readonly directory: string;
  /** Its cgroup, where the host has them, and the controllers that measure it. */
  readonly group: string | undefined;
  readonly controllers: ReadonlySet<string>;
  stoppedBy: string | undefined;
  /** When it was exec'ed, in ms of CLOCK_MONOTONIC, which all processes share until the next boot: process.hrtime(). */
  startedMs: number | undefined;
  /** Resolved once the command has been exec'ed, rejected when it could not be. */
  readonly launched: PromiseWithResolvers<void>;
  readonly ended: PromiseWithResolvers<Job>;
  /** What to call when there may be more output, or the end. */
  readonly followers: Set<() => void>;
  /** Settled when the last update that was asked for is done. */
  updates: Promise<unknown>;
  watcher?: FSWatcher;
}

export function runningOf(job: Job, jobsDir: string, hierarchy: Hierarchy): Running {
  const entry: Running = {
    job,
    directory: join(jobsDir, job.id),
    group: hierarchy.kind === "cgroup2" ? join(hierarchy.path, job.id) : undefined,
    controllers: hierarchy.kind === "cgroup2" ? hierarchy.controllers : new Set(),
    stoppedBy: undefined,
    startedMs: undefined,
    launched: Promise.withResolvers(),
    ended: Promise.withResolvers(),
    followers: new Set(),
    updates: Promise.resolve(),
  };
  entry.launched.promise.catch(() => {});
  entry.ended.promise.catch(() => {});
  return entry;
}

/** The job with its figures of now. */
export function current(entry: Running): Job {
  // An end that is not on the disk yet is known here alone.
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

/** Of CLOCK_MONOTONIC, which is the same in all processes of a boot. */
export function nowMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
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
export function startOf(entry: Running): ReturnType<Log["header"]>["started"] {
  try {
    using output = openLog(entry.directory);
    return output.header().started;
  } catch (error) {
    if (codeOf(error) === "ENOENT") return undefined;
    throw error;
  }
}

/** Calls `wake` whenever there may be more output, or the end, until disposed. One watch serves all. */
export function subscribe(entry: Running, wake: () => void): Disposable {
  entry.watcher ??= watch(join(entry.directory, "output"), () => {
    for (const follower of entry.followers) follower();
  }).on("error", () => {
    for (const follower of entry.followers) follower();
  });
  return awaitEnd(entry, wake);
}

/** Calls `wake` at the end, and perhaps before, until disposed. */
export function awaitEnd(entry: Running, wake: () => void): Disposable {
  entry.followers.add(wake);
  return {
    [Symbol.dispose]() {
      entry.followers.delete(wake);
      if (entry.followers.size > 0) return;
      entry.watcher?.close();
      delete entry.watcher;
    },
  };
}

/** Resolves when the job has ended; `signal` ends the waiting, which throws `unavailable`. */
export function endOf(entry: Running, signal: AbortSignal | undefined): Promise<Job> {
  return Promise.race([entry.ended.promise, aborted(signal)]);
}

function aborted(signal: AbortSignal | undefined): Promise<never> {
  return new Promise((_resolve, reject) => {
    const stop = (): void => reject(new JobError("unavailable", "the waiting was given up"));
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}
