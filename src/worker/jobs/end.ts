import { statSync } from "node:fs";
import { constants } from "node:os";
import { dirname } from "node:path";
import { setTimeout } from "node:timers/promises";
import { pauseAfter } from "../../os/pause.ts";
import { killGroup, removeGroup } from "../cgroup/group.ts";
import { timesFull } from "../cgroup/owner-groups.ts";
import { logIn } from "../log/files.ts";
import type { Job } from "../model/job.ts";
import { endedOf, type Exit, readExit } from "../supervisor/exit.ts";
import { killTree, signalSupervisor } from "../system/process.ts";
import { withReserve } from "../system/reserve.ts";
import { type Context, untrack } from "./context.ts";
import { extentOf, type TrackedJob, unwatch, usageOf } from "./tracked-job.ts";

/**
 * Ends a job whose supervisor is gone: removes what is left of the job, records its end and tells everybody who waits.
 * `lost` is the reason to give when there is no exit record; `fresh` says that the supervisor has only just gone.
 */
export function gone(context: Context, entry: TrackedJob, lost: string | undefined, fresh: boolean): void {
  if (entry.gone) return;
  entry.gone = true;
  clearTimeout(entry.overdue);
  // A short job may end before its start has been answered.
  const told = entry.launched.promise.then(() => finish(context, entry, lost, fresh));
  told.catch((error: unknown) =>
    context.options.log("error", "a job's end could not be told", { job: entry.job.id, error }),
  );
}

/** Why a job whose supervisor is gone is lost, from what the spawner says of the supervisor; undefined when it says nothing. */
export function lostBy(signal: number, errno: string): string | undefined {
  const [name = signal] = Object.entries(constants.signals).find(([, number]) => number === signal) ?? [];
  if (signal !== 0) return `its supervisor was killed by ${name}`;
  return errno === "0" ? undefined : `its supervisor ended without an exit record (${errno})`;
}

async function finish(context: Context, entry: TrackedJob, lost: string | undefined, fresh: boolean): Promise<void> {
  const { files, journal, options, retirement, spawner } = context;
  if (context.closed) return;
  const found = await exitOf(context, entry);
  if (context.closed) return;
  entry.job = withReserve(() => {
    const exit = found === "damaged" ? undefined : found;
    if (!exit) endRest(context, entry, fresh);
    const job = endedJob(entry, exit, found === "damaged" ? "its exit record is damaged" : whyLost(entry, lost));
    return { ...job, log: logIn(entry.directory, retirement.wanted(job)) };
  });
  const recorded = Promise.withResolvers<void>();
  journal.update(entry.job, () => {
    entry.away = putAway(context, entry);
    recorded.resolve(entry.away);
  });
  await entry.away; // already started if the end is on the disk
  if (context.closed) return;
  unwatch(entry);
  entry.ended.resolve(entry.job);
  for (const wake of entry.followers) wake();
  setImmediate(() => {
    // Everybody who waited for the end has been answered by now.
    files.write(entry);
    if (!context.closed) spawner.refill();
    void recorded.promise.then(() => context.closed || retirement.ended(entry.job));
    options.meter?.ended(entry.job);
    options.log("info", "job ended", { job: entry.job.id, how: entry.job.ended?.how });
  });
}

/** Why a job without an exit record is lost. At its directory's path there may be something else by now. */
function whyLost({ directory, unanswered }: TrackedJob, lost: string | undefined): string | undefined {
  try {
    if (statSync(directory).isDirectory()) return unanswered?.lost ?? lost;
  } catch {
    // Nothing is at its path.
  }
  return "its directory is gone";
}

/** Ends what is left of a job without an exit record, and its supervisor, which may run although nothing reaches it. */
function endRest({ journal }: Context, { group, job, supervisor, startedMs }: TrackedJob, fresh: boolean): void {
  if (group !== undefined) killGroup(group);
  else killTree({ pid: job.pid, born: job.birth, startedMs: fresh ? startedMs : undefined }, journal.boot);
  signalSupervisor(supervisor, startedMs, "SIGKILL");
}

/**
 * Removes the group of a job whose end is on the disk. Not before: the group has the job's last figures, which the next
 * daemon must find if this one cannot record them.
 */
async function putAway(context: Context, { group, job }: TrackedJob): Promise<void> {
  try {
    if (group !== undefined) await removeGroup(group);
    untrack(context, job);
  } catch (error) {
    context.options.log("error", "a cgroup could not be removed", { group, error });
  }
}

/** The exit record; undefined when there is none. A record that cannot be read is tried again. */
async function exitOf(context: Context, { directory, job }: TrackedJob): Promise<ReturnType<typeof readExit>> {
  for (let failures = 1; ; failures++) {
    try {
      return withReserve(() => readExit(directory));
    } catch (error) {
      if (context.closed) return undefined;
      context.options.log("error", "an exit record cannot be read; it is tried again", { job: job.id, error });
    }
    await setTimeout(pauseAfter(failures), undefined, { ref: false });
  }
}

function endedJob(entry: TrackedJob, exit: Exit | undefined, lost: string | undefined): Job {
  const usage = usageOf(entry, exit);
  const full = entry.group !== undefined && timesFull(dirname(entry.group)) > entry.timesFull;
  const number = (key: string): number => Number(exit?.get(key));
  return {
    ...entry.job,
    state: "ended",
    pid: exit ? number("pid") : entry.job.pid,
    ...(exit && { startedAt: new Date(number("started_ns") / 1e6) }),
    endedAt: exit ? new Date(number("ended_ns") / 1e6) : new Date(),
    ended: endedOf(exit, usage, { ...entry, ownerFull: full }, lost),
    usage,
    output: exit ? { size: number("size"), first: number("first"), dropped: number("dropped") } : extentOf(entry),
  };
}
