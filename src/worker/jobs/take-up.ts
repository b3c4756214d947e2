import { existsSync, opendirSync, readdirSync, unlinkSync } from "node:fs";
import { constants } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { killGroup, populated, readLimits, removeGroup } from "../cgroup/group.ts";
import { type Hierarchy, hierarchyAt } from "../cgroup/hierarchy.ts";
import { isOwnerGroup, ownerGroupName } from "../cgroup/owner-groups.ts";
import { readJob, type Told } from "../journal/job-file.ts";
import type { JobRecord } from "../journal/record.ts";
import { removeDirectory } from "../journal/state-directory.ts";
import { logIn } from "../log/files.ts";
import { startOf } from "../log/log.ts";
import { orderOf } from "../model/id.ts";
import { isSupervised, order } from "../supervisor/control.ts";
import { readExit } from "../supervisor/exit.ts";
import { bootOf, interruption, signalSupervisor, supervisorState } from "../system/process.ts";
import { type Context, track, untrack } from "./context.ts";
import { gone, lostBy } from "./end.ts";
import { quotaHere, sumSettings } from "./quota.ts";
import type { TrackedJob } from "./tracked-job.ts";

/** A supervisor that was told to start its job does so, or fails, in milliseconds. */
const MOST_STARTING_MS = 5000;

/** Removes the spares of a daemon that was killed, which may be removing themselves. */
export function removeSpares(sparesDir: string): void {
  for (const file of readdirSync(sparesDir)) removeDirectory(join(sparesDir, file));
}

/** Takes up the jobs of the previous daemon. */
export async function takeUpAll(context: Context): Promise<void> {
  const { groups, journal, options, tracked } = context;
  for (const kept of journal.alive())
    if (kept.job.damaged === undefined) await takeUp(context, kept);
    else await takeUpDamaged(context, kept);
  if (!journal.clean) {
    const found = unknownIn(context).filter((id) => takeIn(context, id));
    if (found.length > 0)
      options.log("warn", "jobs were not in the journal, and have been taken from their directories", { jobs: found });
    for (const id of found) {
      const kept = journal.find(id);
      if (kept && kept.job.state !== "ended") await takeUp(context, kept);
    }
  }
  // Groups made ahead, and groups of starts that were cut before they were recorded.
  for (const path of groups)
    for (const each of readdirSync(path, { withFileTypes: true }))
      if (each.isDirectory() && !isOwnerGroup(each.name) && !tracked.has(each.name))
        discardGroup(context, join(path, each.name));
  takeUpOwners(context);
}

/** Removes the groups of owners that have no jobs any more, and gives the others their limits. */
function takeUpOwners(context: Context): void {
  const { groups, ownerGroups, tracked } = context;
  const used = new Set([...tracked.values()].map(({ group = "" }) => dirname(group)));
  for (const path of groups) if (isOwnerGroup(path) && !used.has(path)) ownerGroups.leave(path);
  limitOwners(context);
}

/** Gives the groups of owners the limits that their quotas have now. */
export function limitOwners(context: Context): void {
  const { hierarchy, options, ownerGroups, tracked } = context;
  const owners = new Map<string, string>();
  const outside: string[] = [];
  for (const { group, job } of tracked.values()) {
    const path = dirname(group ?? "");
    const shared = sumSettings(quotaHere(context, job.owner) ?? {}).length > 0;
    if (isOwnerGroup(path)) owners.set(path, job.owner);
    const own = hierarchy.kind === "cgroup2" && path === join(hierarchy.path, ownerGroupName(job.owner));
    if (shared && !own) outside.push(job.id);
  }
  for (const [path, owner] of owners) {
    try {
      ownerGroups.adopt(path, sumSettings(quotaHere(context, owner) ?? {}));
    } catch (error) {
      options.log("error", "an owner's group could not be given its limits", { group: path, error });
    }
  }
  if (outside.length > 0)
    options.log("warn", "jobs that were started without a quota do not count in their owners' sums", { jobs: outside });
}

/** Returns the ids of directories that the journal does not know, in their order: of those that it may have lost, since there may be a million. */
function unknownIn({ jobsDir, journal }: Context): string[] {
  const settled = orderOf(journal.settled ?? "") ?? "";
  const unknown: string[] = [];
  using directory = opendirSync(jobsDir);
  for (let entry; (entry = directory.readSync());) {
    const { name } = entry;
    const order = orderOf(name);
    if (name.startsWith(".") || (order !== undefined && order < settled) || journal.knows(name)) continue;
    unknown.push(name);
  }
  return unknown.toSorted();
}

/** The hierarchy in which the job's group was made. */
function hierarchyOf({ hierarchy, groups }: Context, id: string): Hierarchy {
  const path = groups.find((each) => existsSync(join(each, id)));
  const own = hierarchy.kind === "cgroup2" && hierarchy.path === path;
  return path === undefined || own ? hierarchy : hierarchyAt(path);
}

/** Takes in a directory that the journal does not know: a crash of the host, or damage, can lose the latest records. */
function takeIn(context: Context, id: string): boolean {
  const { jobsDir, journal, retirement } = context;
  const directory = join(jobsDir, id);
  const told = readTold(context, directory);
  if (told === "unreadable") return false;
  if (!told) {
    discardDirectory(directory);
    return false;
  }
  const { job, requestId, stoppedBy } = told;
  const taken = requestId !== undefined && journal.findRequest(job.owner, requestId) !== undefined;
  const ended = job.state === "ended";
  const kept = ended ? { ...job, log: job.log ?? logIn(directory, retirement.wanted(job)) } : job;
  journal.insert(kept, taken ? undefined : requestId);
  if (ended) retirement.ended(kept);
  if (stoppedBy !== undefined) journal.stopping(id, stoppedBy);
  return true;
}

/** What a directory tells of its job. A damaged directory is logged, so that the others are still taken in. */
function readTold({ options }: Context, directory: string): Told | "unreadable" | undefined {
  try {
    return readJob(directory);
  } catch (error) {
    options.log("error", "a directory that the journal does not know cannot be read, and is left", {
      directory,
      error,
    });
    return "unreadable";
  }
}

/** Takes up a job that may run and whose record is damaged, from the record in its directory if there is one. */
async function takeUpDamaged(context: Context, kept: JobRecord): Promise<void> {
  const { jobsDir, journal, retirement } = context;
  const { id, owner, damaged: _damaged, ended: _ended, endedAt: _endedAt, ...rest } = kept.job;
  const directory = join(jobsDir, id);
  const told = readTold(context, directory);
  if (told === undefined || told === "unreadable")
    return takeUp(context, { ...kept, job: { ...rest, id, owner, state: "running" } });
  const { stoppedBy = kept.stoppedBy, job: found } = told;
  const job = told.instance === undefined ? { ...found, owner } : found;
  const ended = job.state === "ended";
  const whole = ended ? { ...job, log: job.log ?? logIn(directory, retirement.wanted(job)) } : job;
  journal.update(whole);
  if (ended) return retirement.ended(whole);
  return takeUp(context, { ...kept, job, ...(stoppedBy !== undefined && { stoppedBy }) });
}

async function takeUp(context: Context, { seq, job, stoppedBy, requestId }: JobRecord): Promise<void> {
  const { files, journal, spawner } = context;
  const entry = track(context, job, hierarchyOf(context, job.id));
  entry.seq = seq;
  entry.stoppedBy = stoppedBy;
  entry.requestId = requestId;
  const { directory, group } = entry;
  const { supervised, started, happened } = await traces(context, entry);
  if (!happened) {
    // The start was cut before exec, so it did not happen. The client finds that out with its request id.
    untrack(context, job);
    discardDirectory(directory);
    if (group !== undefined) discardGroup(context, group);
    journal.remove(job.id);
    return;
  }
  if (started)
    entry.job = {
      ...job,
      state: stoppedBy === undefined ? "running" : "stopping",
      pid: started.pid,
      startedAt: started.at,
      // After a reboot there is no group to read the limits from.
      limits: group === undefined ? job.limits : new Map([...job.limits, ...readLimits(group, job.limits.keys())]),
    };
  entry.startedMs = journal.interrupted === undefined ? started?.ms : undefined;
  entry.supervisor = started?.supervisor;
  entry.launched.resolve();
  // Somebody may have stopped the supervisor while it had no parent that would notice.
  signalSupervisor(entry.supervisor, entry.startedMs, "SIGCONT");
  if (supervised) files.later(entry);
  // Only its FIFO tells whether the supervisor lives: pids and boot ids can be wrong.
  const lost = supervised ? undefined : lostBefore(context, entry);
  spawner.adopt(directory, (signal, errno) => gone(context, entry, lostBy(signal, errno) ?? lost, supervised));
}

/** Why a job was lost while no daemon ran. */
function lostBefore({ journal }: Context, { job: { birth }, startedMs, supervisor }: TrackedJob): string {
  const interrupted = birth === undefined ? journal.interrupted : interruption(bootOf(birth), journal.boot);
  const unreachable = supervisorState(supervisor, startedMs) !== undefined;
  return interrupted ?? (unreachable ? "its control is gone" : "its supervisor died while no jobsd ran");
}

/** Whether the job ran, or still runs, although its directory has been removed. */
function ranWithout({ directory, group }: TrackedJob): boolean {
  return !existsSync(directory) && group !== undefined && populated(group);
}

/** Waits until the supervisor has started its job or is gone. Resolves to whether it lives. */
async function decided(entry: TrackedJob): Promise<boolean> {
  // A job whose pid is recorded was started long ago: its index may be gone, and must not be waited for.
  if (entry.job.pid > 0) return isSupervised(entry.directory);
  for (const deadline = performance.now() + MOST_STARTING_MS; ; await delay(5)) {
    if (!isSupervised(entry.directory)) return false;
    if (startOf(entry)) return true;
    if (performance.now() > deadline) return false;
  }
}

/**
 * Removes the directory of a start that did not happen. A supervisor that is still about to start the job finds the index
 * gone, and ends itself (log.c).
 */
function discardDirectory(directory: string): void {
  try {
    unlinkSync(join(directory, "index"));
  } catch {
    // There is no index.
  }
  order(directory, constants.signals.SIGKILL, 0);
  removeDirectory(directory);
}

interface Traces {
  readonly supervised: boolean;
  readonly started?: ReturnType<typeof startOf>;
  readonly happened: boolean;
}

/** What a job's files tell of its start. When they cannot be read, the start is taken to have happened. */
async function traces({ options }: Context, entry: TrackedJob): Promise<Traces> {
  const { directory, job } = entry;
  try {
    const supervised = await decided(entry);
    const started = startOf(entry);
    const happened = started !== undefined || job.pid > 0 || readExit(directory) !== undefined || ranWithout(entry);
    return { supervised, started, happened };
  } catch (error) {
    options.log("error", "a job's files cannot be read", { job: job.id, error });
    return { supervised: isSupervised(directory), happened: true };
  }
}

/** Removes the group of a start that did not happen, in the background. */
function discardGroup({ options }: Context, group: string): void {
  killGroup(group);
  removeGroup(group).catch((error: unknown) => options.log("error", "a cgroup could not be removed", { group, error }));
}
