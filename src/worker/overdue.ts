import { killGroup, populated, processesIn } from "./cgroup.ts";
import type { Context } from "./context.ts";
import { gone } from "./end.ts";
import { killTree, nowMs, signalSupervisor, supervisorState, type Roots } from "./process.ts";
import type { Running } from "./running.ts";

/* A stop that a job's supervisor does not carry out goes on without it. */

/** From the end of the grace period until the job's processes are killed here, and from then until its supervisor is. */
const PATIENCE_MS = 1000;
const LAST_MS = 500;
/** setTimeout() takes no more. */
const LONGEST_MS = 2 ** 31 - 1;

/**
 * Of a job that has been told to end: sees to it that it does, within the grace period and two seconds, whatever has become
 * of its supervisor. One that was stopped is made to go on.
 */
export function seeToEnd(context: Context, entry: Running, graceMs: number): void {
  signalSupervisor(entry.supervisor, entry.startedMs, "SIGCONT");
  const dueMs = nowMs() + graceMs + PATIENCE_MS;
  if (entry.gone || dueMs >= entry.dueMs) return;
  entry.dueMs = dueMs;
  clearTimeout(entry.overdue);
  wait(context, entry);
}

function wait(context: Context, entry: Running): void {
  const leftMs = Math.max(0, entry.dueMs - nowMs());
  const next = leftMs > LONGEST_MS ? wait : endProcesses;
  later(context, entry, next, Math.min(leftMs, LONGEST_MS));
}

function later(context: Context, entry: Running, next: typeof wait, ms: number): void {
  entry.overdue = setTimeout(() => {
    if (!entry.gone && !context.closed) next(context, entry);
  }, ms).unref();
}

export function rootsOf({ job, startedMs, supervisor }: Running): Roots {
  return { pid: job.pid, born: job.birth, startedMs, ...(supervisor !== undefined && { supervisor }) };
}

/** Kills what is left of the job. Its supervisor, if it is well, sees that and records the end. */
function endProcesses(context: Context, entry: Running): void {
  const { group, startedMs, supervisor } = entry;
  // Its end is on its way, or its spawner does not tell of it.
  if (supervisor !== undefined && startedMs !== undefined && supervisorState(supervisor, startedMs) === undefined)
    return gone(context, entry, undefined, true);
  const killed = group === undefined ? killTree(rootsOf(entry), context.journal.boot) : killAll(group);
  doWithout(context, entry, "did not end it in time");
  if (entry.unanswered) entry.unanswered.killed += killed;
  later(context, entry, endSupervisor, LAST_MS);
}

/** Says once that this process does a supervisor's work, and why: in the log, and in the job's warnings. */
export function doWithout({ files, options }: Context, entry: Running, why: string): void {
  if (entry.unanswered) return;
  const { job, stoppedBy = "" } = entry;
  const what = `its supervisor ${why}: the daemon stops it`;
  entry.unanswered = { killed: 0, lost: `its supervisor did not answer when ${stoppedBy} stopped it` };
  entry.job = { ...job, warnings: [...job.warnings, what] };
  options.log("warn", "a job is stopped without its supervisor", { job: job.id, why: what });
  files.later(entry);
}

/** Returns how many processes there were. */
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
 * Kills a supervisor that has nothing more to wait for, and waits. One that runs, or waits for a disk, is doing what is to be
 * done, and so is the kernel while processes are left: those are looked at again.
 */
function endSupervisor(context: Context, entry: Running): void {
  const { group, job, startedMs, supervisor } = entry;
  const state = supervisorState(supervisor, startedMs);
  const left = group === undefined ? killTree(rootsOf(entry), context.journal.boot) > 0 : populated(group);
  if (left || state === "R" || state === "D") return later(context, entry, endProcesses, PATIENCE_MS);
  // It has ended, or nobody knows which process it was.
  if (state === undefined) return gone(context, entry, undefined, true);
  context.options.log("error", "a job's supervisor does not answer, and is killed", { job: job.id, supervisor });
  signalSupervisor(supervisor, startedMs, "SIGKILL");
  later(context, entry, endSupervisor, LAST_MS);
}
