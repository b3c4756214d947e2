import { constants } from "node:os";
import { killGroup, limitGroup, removeGroup } from "../cgroup/group.ts";
import type { Hierarchy } from "../cgroup/hierarchy.ts";
import { removeDirectory } from "../journal/state-directory.ts";
import { JobError, notFound } from "../model/errors.ts";
import { refusal } from "../model/failure.ts";
import { orderOf } from "../model/id.ts";
import type { Job, JobSpec } from "../model/job.ts";
import { order } from "../supervisor/control.ts";
import { nowMs } from "../system/process.ts";
import { withReserve } from "../system/reserve.ts";
import { type Context, type Starting, track, untrack } from "./context.ts";
import { gone, lostBy } from "./end.ts";
import { type Plan, planOf } from "./plan.ts";
import { killStart, PATIENCE_MS } from "./overdue.ts";
import type { TrackedJob } from "./tracked-job.ts";
import { checkSpec } from "./spec.ts";

/** How many starts come between two times that the journal is settled. */
const SETTLED_TOGETHER = 1024;
/** When so many uids in a row are taken, somebody else uses the range. */
const MOST_TAKEN = 64;

export interface Started {
  readonly job: Job;
  readonly alreadyStarted: boolean;
}

/**
 * Starts a job, once for each owner and request id. Resolves when the command has been exec'ed. When `signal` of each call
 * that waits for the start is aborted, a start that cannot get on, as with a program that cannot be opened, is ended a second
 * later. Throws JobError.
 */
export async function start(context: Context, spec: JobSpec, signal?: AbortSignal): Promise<Started> {
  const { journal, requests, tracked } = context;
  if (context.closed) throw new JobError("unavailable", "the worker is closing");
  checkSpec(spec);
  if (spec.requestId === undefined)
    return { job: await startedFor(context, begin(context, spec), signal), alreadyStarted: false };
  const key = JSON.stringify([spec.owner, spec.requestId]);
  const inFlight = requests.get(key);
  if (inFlight) return { job: await startedFor(context, inFlight, signal), alreadyStarted: true };
  const earlier = journal.findRequest(spec.owner, spec.requestId);
  if (earlier) return { job: tracked.get(earlier.job.id)?.job ?? earlier.job, alreadyStarted: true };
  const starting = begin(context, spec);
  requests.set(key, starting);
  try {
    return { job: await startedFor(context, starting, signal), alreadyStarted: false };
  } finally {
    requests.delete(key);
  }
}

/** Waits for a start on behalf of one call, and ends it when no call is left that does. */
async function startedFor(context: Context, starting: Starting, signal: AbortSignal | undefined): Promise<Job> {
  let late: NodeJS.Timeout | undefined;
  const leave = (): void => {
    if (--starting.callers > 0) return;
    late = setTimeout(() => {
      // A client whose connection broke may have asked for it again.
      if (starting.callers === 0 && starting.made.entry) killStart(context, starting.made.entry);
    }, PATIENCE_MS).unref();
  };
  starting.callers++;
  if (signal?.aborted) leave();
  signal?.addEventListener("abort", leave);
  try {
    return await starting.job;
  } finally {
    clearTimeout(late);
    signal?.removeEventListener("abort", leave);
  }
}

function begin(context: Context, spec: JobSpec): Starting {
  const made = {};
  return { job: attempts(context, spec, made), made, callers: 0 };
}

async function attempts(context: Context, spec: JobSpec, made: Starting["made"]): Promise<Job> {
  for (let left = MOST_TAKEN; ; left--) {
    try {
      return await launch(context, planOf(context, spec), made);
    } catch (error) {
      if (!isTaken(error) || left === 0) throw refusal(error);
    }
  }
}

/** Processes of somebody else run under the uid that the job was to have for itself. */
function isTaken(error: unknown): boolean {
  return error instanceof JobError && error.facts["stage"] === "user" && error.facts["errno"] === "EBUSY";
}

/** Takes a group for the job, and with it the job's id. Throws JobError. */
function groupFor(
  { groupsAhead, hierarchy, ownerGroups }: Context,
  { job: { owner }, shared }: Plan,
): { readonly id: string; readonly parent: Hierarchy } {
  if (shared.length === 0) return { id: groupsAhead.take(hierarchy), parent: hierarchy };
  const parent = ownerGroups.enter(owner, shared);
  try {
    return { id: groupsAhead.take(parent), parent };
  } catch (error) {
    // Somebody may have removed the owner's group: the next start makes another one.
    if (parent.kind === "cgroup2") ownerGroups.leave(parent.path);
    throw error;
  }
}

/** Carries out a plan. Rejects when the kernel, the disk or the supervisor refuses it, and then leaves nothing of it. */
async function launch(context: Context, plan: Plan, made: Starting["made"]): Promise<Job> {
  const { job: planned, launch: told, settings, requestId } = plan;
  const { files, groupsAhead, journal, options, spawner } = context;
  const { id, parent } = groupFor(context, plan);
  const job = { ...planned, id, createdAt: new Date() };
  const entry = track(context, job, parent);
  made.entry = entry;
  entry.requestId = requestId;
  const record = (supervisor: number): void => {
    entry.supervisor = supervisor;
    if (entry.group !== undefined) entry.job = { ...job, limits: limitGroup(entry.group, settings) };
    entry.seq = journal.insert(entry.job, requestId);
  };
  try {
    const places = { directory: entry.directory, cgroup: entry.group ?? "" };
    const pid = await spawner.launch({ ...told, ...places }, record, (signal, errno) =>
      gone(context, entry, lostBy(signal, errno), true),
    );
    entry.job = { ...entry.job, state: "running", pid, startedAt: new Date() };
    entry.startedMs = nowMs();
    entry.launched.resolve();
  } catch (error) {
    await undo(context, entry);
    entry.launched.reject(error);
    entry.ended.reject(notFound(job.id));
    throw error;
  }
  // The journal is told later: a restart needs only the record that it has, and the log's header.
  files.later(entry);
  setImmediate(() => {
    // The start has been answered by now.
    if (!context.closed) groupsAhead.refill();
    if (!context.closed && (entry.seq ?? 0) % SETTLED_TOGETHER === 0) settle(context);
    options.log("info", "job started", { job: job.id, pid: entry.job.pid, owner: job.owner });
  });
  return entry.job;
}

/** Has the journal settle what is recorded. Ids are taken in order, so those of starts that are not recorded yet come last. */
export function settle({ journal, options, tracked }: Context): void {
  const recording = [...tracked.values()].flatMap(({ seq, job }) => (seq === undefined ? [job.id] : []));
  const [first = journal.newest()] = recording.toSorted((a, b) => ((orderOf(a) ?? "") < (orderOf(b) ?? "") ? -1 : 1));
  if (first === undefined) return;
  try {
    journal.settle(first);
  } catch (error) {
    // The next start after an unclean end looks at more than it would have to.
    options.log("debug", "the journal could not be settled", { error });
  }
}

/** Removes everything that a failed start has made. */
async function undo(context: Context, { job, directory, group }: TrackedJob): Promise<void> {
  const { groupsAhead, journal, options } = context;
  try {
    // The job may run, if the spawner died before it could say so.
    withReserve(() => order(directory, constants.signals.SIGKILL, 0));
    if (group !== undefined) {
      killGroup(group);
      await removeGroup(group);
      groupsAhead.refill();
    }
    removeDirectory(directory);
  } catch (error) {
    options.log("error", "what a failed start has left could not be removed", { job: job.id, error });
  }
  journal.remove(job.id);
  untrack(context, job);
}
