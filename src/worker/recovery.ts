import { existsSync, readdirSync, unlinkSync } from "node:fs";
import { constants } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { hierarchyAt, killGroup, populated, readLimits, removeGroup, type Hierarchy } from "./cgroup.ts";
import { track, untrack, type Context } from "./context.ts";
import { isSupervised, order } from "./control.ts";
import { removeDirectory } from "./directory.ts";
import { gone, lostBy } from "./end.ts";
import { readExit } from "./exit.ts";
import { readJob, type Told } from "./job-file.ts";
import type { Record as Kept } from "./journal.ts";
import { logIn } from "./log.ts";
import { bootOf, interruption, signalSupervisor, supervisorState } from "./process.ts";
import { startOf, type Running } from "./running.ts";

/** A supervisor that has been told to go on starts its job, or fails, in milliseconds. */
const MOST_STARTING_MS = 5000;

/** Removes the spares of a daemon that was killed. They may be putting themselves away. */
export function removeSpares(sparesDir: string): void {
  for (const file of readdirSync(sparesDir)) removeDirectory(join(sparesDir, file));
}

/** Takes up the jobs of the daemon before this one. */
export async function recover(context: Context): Promise<void> {
  const { groups, jobsDir, journal, options, running } = context;
  for (const kept of journal.alive())
    if (kept.job.damaged === undefined) await takeUp(context, kept);
    else await takeUpDamaged(context, kept);
  if (!journal.clean) {
    const known = journal.ids();
    const found = readdirSync(jobsDir).filter((id) => !id.startsWith(".") && !known.has(id) && takeIn(context, id));
    if (found.length > 0)
      options.log("warn", "jobs were not in the journal, and have been taken from their directories", { jobs: found });
    for (const id of found) {
      const kept = journal.find(id);
      if (kept && kept.job.state !== "ended") await takeUp(context, kept);
    }
  }
  // What was made for jobs to come, and what a start has left that was cut before it was recorded.
  for (const path of groups)
    for (const each of readdirSync(path, { withFileTypes: true }))
      if (each.isDirectory() && !running.has(each.name)) discardGroup(context, join(path, each.name));
}

/** Where the job's group was made. */
function hierarchyOf({ hierarchy, groups }: Context, id: string): Hierarchy {
  const path = groups.find((each) => existsSync(join(each, id)));
  const own = hierarchy.kind === "cgroup2" && hierarchy.path === path;
  return path === undefined || own ? hierarchy : hierarchyAt(path);
}

/** Of a directory that the journal does not know: a crash of the host, or damage, can take what was recorded last. */
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

/** One directory that is damaged keeps no other job from being found. */
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

/** Of a job that may run, and whose record is damaged: its directory has another, or tells at least that it runs. */
async function takeUpDamaged(context: Context, kept: Kept): Promise<void> {
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

async function takeUp(context: Context, { job, stoppedBy, requestId }: Kept): Promise<void> {
  const { files, journal, spawner } = context;
  const entry = track(context, job, hierarchyOf(context, job.id));
  entry.stoppedBy = stoppedBy;
  entry.requestId = requestId;
  const { directory, group } = entry;
  const { supervised, started, happened } = await traces(context, entry);
  if (!happened) {
    // Its start was cut before exec: it did not happen. Whoever asked can find that out by its request id.
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
      // After a reboot there is no group to read them from.
      limits: group === undefined ? job.limits : new Map([...job.limits, ...readLimits(group, job.limits.keys())]),
    };
  entry.startedMs = journal.interrupted === undefined ? started?.ms : undefined;
  entry.supervisor = started?.supervisor;
  entry.launched.resolve();
  // Whoever stopped it may have done so while no parent of it heard of that.
  signalSupervisor(entry.supervisor, entry.startedMs, "SIGCONT");
  if (supervised) files.later(entry);
  // Whether it lives is said by its FIFO alone, not by any boot's or process's number.
  const lost = supervised ? undefined : lostBefore(context, entry);
  spawner.adopt(directory, (signal, errno) => gone(context, entry, lostBy(signal, errno) ?? lost, supervised));
}

/** What became of a job while no daemon ran. */
function lostBefore({ journal }: Context, { job: { birth }, startedMs, supervisor }: Running): string {
  const interrupted = birth === undefined ? journal.interrupted : interruption(bootOf(birth), journal.boot);
  const unreachable = supervisorState(supervisor, startedMs) !== undefined;
  return interrupted ?? (unreachable ? "its control is gone" : "its supervisor died while no jobsd ran");
}

/** Its directory has been removed, but it had been seen to run, or does. */
function ranWithout({ directory, group, job }: Running): boolean {
  return !existsSync(directory) && (job.pid > 0 || (group !== undefined && populated(group)));
}

/** Waits until a supervisor that lives has started its job, or is gone. Resolves to whether it lives. */
async function decided(entry: Running): Promise<boolean> {
  for (const deadline = performance.now() + MOST_STARTING_MS; ; await delay(5)) {
    if (!isSupervised(entry.directory)) return false;
    if (startOf(entry)) return true;
    if (performance.now() > deadline) return false;
  }
}

/** Of a start that did not happen. A supervisor that yet comes to start it finds its index gone, and ends it (log.c). */
function discardDirectory(directory: string): void {
  try {
    unlinkSync(join(directory, "index"));
  } catch {
    // It is not there.
  }
  order(directory, constants.signals.SIGKILL, 0);
  removeDirectory(directory);
}

interface Traces {
  readonly supervised: boolean;
  readonly started?: ReturnType<typeof startOf>;
  readonly happened: boolean;
}

/** What its files tell of a start. Where they cannot be read it may have happened: its supervisor is asked for. */
async function traces({ options }: Context, entry: Running): Promise<Traces> {
  const { directory, job } = entry;
  try {
    const supervised = await decided(entry);
    const started = startOf(entry);
    const happened = started !== undefined || readExit(directory) !== undefined || ranWithout(entry);
    return { supervised, started, happened };
  } catch (error) {
    options.log("error", "a job's files cannot be read", { job: job.id, error });
    return { supervised: isSupervised(directory), happened: true };
  }
}

/** Of a start that did not happen; nobody waits for it. */
function discardGroup({ options }: Context, group: string): void {
  killGroup(group);
  removeGroup(group).catch((error: unknown) => options.log("error", "a cgroup could not be removed", { group, error }));
}
