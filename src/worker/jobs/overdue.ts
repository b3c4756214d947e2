import { killGroup, populated } from "../cgroup/group.ts";
import { processesIn } from "../cgroup/hierarchy.ts";
import { killTree, nowMs, type Roots, signalSupervisor, supervisorState } from "../system/process.ts";
import type { Context } from "./context.ts";
import { gone } from "./end.ts";
import type { TrackedJob } from "./tracked-job.ts";

/* A stop that a job's supervisor does not carry out goes on without it. */

/** Time from the end of the grace period until this process kills the job's processes, and from then until it kills the supervisor. */
export const PATIENCE_MS = 1000;
const LAST_MS = 500;
/** The longest that setTimeout() can wait. */
const LONGEST_MS = 2 ** 31 - 1;

/**
 * Makes sure that a job which was told to end does so within the grace period and two seconds, whatever its supervisor
 * does. A supervisor that somebody stopped is continued.
 */
export function seeToEnd(context: Context, entry: TrackedJob, graceMs: number): void {
  signalSupervisor(entry.supervisor, entry.startedMs, "SIGCONT");
  const dueMs = nowMs() + graceMs + PATIENCE_MS;
  if (entry.gone || dueMs >= entry.dueMs) return;
  entry.dueMs = dueMs;
  clearTimeout(entry.overdue);
  wait(context, entry);
}

function wait(context: Context, entry: TrackedJob): void {
  const leftMs = Math.max(0, entry.dueMs - nowMs());
  const next = leftMs > LONGEST_MS ? wait : endProcesses;
  later(context, entry, next, Math.min(leftMs, LONGEST_MS));
}

function later(context: Context, entry: TrackedJob, next: typeof wait, ms: number): void {
  entry.overdue = setTimeout(() => {
    if (!entry.gone && !context.closed) next(context, entry);
  }, ms).unref();
}

/**
 * Resolves when a job has been started. Kills a start that still waits for a file after the grace period, and rejects then,
 * as for every start that fails.
 */
export async function launchedInTime(context: Context, entry: TrackedJob, graceMs: number): Promise<void> {
  const late = setTimeout(() => killStart(context, entry), Math.min(graceMs + PATIENCE_MS, LONGEST_MS)).unref();
  try {
    await entry.launched.promise;
  } finally {
    clearTimeout(late);
  }
}

/** Kills a start that waits for a file. */
export function killStart({ journal }: Context, entry: TrackedJob): void {
  if (entry.group !== undefined) killAll(entry.group);
  else killTree({ ...rootsOf(entry), startedMs: nowMs() }, journal.boot);
}

export function rootsOf({ job, startedMs, supervisor }: TrackedJob): Roots {
  return { pid: job.pid, born: job.birth, startedMs, ...(supervisor !== undefined && { supervisor }) };
}

/** Kills what is left of the job. A supervisor that works notices that and records the end. */
function endProcesses(context: Context, entry: TrackedJob): void {
  const { group, startedMs, supervisor } = entry;
  // The supervisor has ended; the spawner will tell of that, or cannot.
  if (supervisor !== undefined && startedMs !== undefined && supervisorState(supervisor, startedMs) === undefined)
    return gone(context, entry, undefined, true);
  const killed = group === undefined ? killTree(rootsOf(entry), context.journal.boot) : killAll(group);
  doWithout(context, entry, "did not end it in time");
  if (entry.unanswered) entry.unanswered.killed += killed;
  later(context, entry, endSupervisor, LAST_MS);
}

/** Notes once, in the log and in the job's warnings, that this process does the supervisor's work, and why. */
export function doWithout({ files, options }: Context, entry: TrackedJob, why: string): void {
  if (entry.unanswered) return;
  const { job, stoppedBy = "" } = entry;
  const what = `its supervisor ${why}: the daemon stops it`;
  entry.unanswered = { killed: 0, lost: `its supervisor did not answer when ${stoppedBy} stopped it` };
  entry.job = { ...job, warnings: [...job.warnings, what] };
  options.log("warn", "a job is stopped without its supervisor", { job: job.id, why: what });
  files.later(entry);
}

/** Kills all processes of a group. Returns how many there were. */
function killAll(group: string): number {
  try {
    return processesIn(group).length;
  } catch {
    return 0; // the group is gone
  } finally {
    killGroup(group);
  }
}

/**
 * Kills a supervisor that has nothing left to wait for. A supervisor that runs or waits for a disk is still working, and
 * the kernel is while processes are left: these are looked at again later.
 */
function endSupervisor(context: Context, entry: TrackedJob): void {
  const { group, job, startedMs, supervisor } = entry;
  const state = supervisorState(supervisor, startedMs);
  const left = group === undefined ? killTree(rootsOf(entry), context.journal.boot) > 0 : populated(group);
  if (left || state === "R" || state === "D") return later(context, entry, endProcesses, PATIENCE_MS);
  // The supervisor has ended, or its pid is not known.
  if (state === undefined) return gone(context, entry, undefined, true);
  context.options.log("error", "a job's supervisor does not answer, and is killed", { job: job.id, supervisor });
  signalSupervisor(supervisor, startedMs, "SIGKILL");
  later(context, entry, endSupervisor, LAST_MS);
}
