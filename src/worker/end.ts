import { existsSync } from "node:fs";
import { constants } from "node:os";
import { setTimeout } from "node:timers/promises";
import { killGroup, removeGroup } from "./cgroup.ts";
import { untrack, type Context } from "./context.ts";
import { endedOf, readExit, type Exit } from "./exit.ts";
import type { Job } from "./job.ts";
import { logIn } from "./log.ts";
import { FIRST_PAUSE_MS, longer } from "./pause.ts";
import { killTree, signalSupervisor } from "./process.ts";
import { withReserve } from "./reserve.ts";
import { extentOf, unwatch, usageOf, type Running } from "./running.ts";

/**
 * Its supervisor is gone: what is left of the job is put away, and its end recorded and told. `lost` is why, should there be
 * no record of its end; `fresh` when that was a moment ago.
 */
export function gone(context: Context, entry: Running, lost: string | undefined, fresh: boolean): void {
  if (entry.gone) return;
  entry.gone = true;
  clearTimeout(entry.overdue);
  // A short job is gone before its start has been told.
  const told = entry.launched.promise.then(() => finish(context, entry, lost, fresh));
  told.catch((error: unknown) =>
    context.options.log("error", "a job's end could not be told", { job: entry.job.id, error }),
  );
}

/** Why a job is lost whose supervisor is gone, as the spawner tells of that; undefined when it tells nothing. */
export function lostBy(signal: number, errno: string): string | undefined {
  const [name = signal] = Object.entries(constants.signals).find(([, number]) => number === signal) ?? [];
  if (signal !== 0) return `its supervisor was killed by ${name}`;
  return errno === "0" ? undefined : `its supervisor ended without an exit record (${errno})`;
}

async function finish(context: Context, entry: Running, lost: string | undefined, fresh: boolean): Promise<void> {
  const { files, journal, options, retirement, spawner } = context;
  if (context.closed) return;
  const exit = await exitOf(context, entry);
  if (context.closed) return;
  entry.job = withReserve(() => {
    if (!exit) endRest(context, entry, fresh);
    const job = endedJob(
      entry,
      exit,
      existsSync(entry.directory) ? (entry.unanswered?.lost ?? lost) : "its directory is gone",
    );
    return { ...job, log: logIn(entry.directory, retirement.wanted(job)) };
  });
  const recorded = Promise.withResolvers<void>();
  let away = Promise.resolve();
  journal.update(entry.job, () => {
    away = putAway(context, entry);
    recorded.resolve(away);
  });
  await away; // where the end is on the disk already
  if (context.closed) return;
  unwatch(entry);
  entry.ended.resolve(entry.job);
  for (const wake of entry.followers) wake();
  setImmediate(() => {
    // Those who waited for the end have been answered.
    files.write(entry);
    if (!context.closed) spawner.refill();
    void recorded.promise.then(() => context.closed || retirement.ended(entry.job));
    options.log("info", "job ended", { job: entry.job.id, how: entry.job.ended?.how });
  });
}

/** Of a job without an exit record. Its supervisor may be there, where nobody could reach it. */
function endRest({ journal }: Context, { group, job, supervisor, startedMs }: Running, fresh: boolean): void {
  if (group !== undefined) killGroup(group);
  else killTree({ pid: job.pid, born: job.birth, startedMs: fresh ? startedMs : undefined }, journal.boot);
  signalSupervisor(supervisor, startedMs, "SIGKILL");
}

/**
 * Of a job whose end is on the disk. Its group's figures are part of how it ended: the next daemon is to find them where
 * this one cannot record them.
 */
async function putAway(context: Context, { group, job }: Running): Promise<void> {
  try {
    if (group !== undefined) await removeGroup(group);
    untrack(context, job);
  } catch (error) {
    context.options.log("error", "a cgroup could not be removed", { group, error });
  }
}

/** Undefined when there is none. That it cannot be read now does not mean that: it is tried again. */
async function exitOf(context: Context, { directory, job }: Running): Promise<Exit | undefined> {
  for (let pauseMs = FIRST_PAUSE_MS; ; pauseMs = longer(pauseMs)) {
    try {
      return withReserve(() => readExit(directory));
    } catch (error) {
      if (context.closed) return undefined;
      context.options.log("error", "an exit record cannot be read; it is tried again", { job: job.id, error });
    }
    await setTimeout(pauseMs, undefined, { ref: false });
  }
}

export function endedJob(entry: Running, exit: Exit | undefined, lost: string | undefined): Job {
  const usage = usageOf(entry, exit);
  const number = (key: string): number => Number(exit?.get(key));
  return {
    ...entry.job,
    state: "ended",
    pid: exit ? number("pid") : entry.job.pid,
    ...(exit && { startedAt: new Date(number("started_ns") / 1e6) }),
    endedAt: exit ? new Date(number("ended_ns") / 1e6) : new Date(),
    ended: endedOf(exit, usage, entry, lost),
    usage,
    output: exit ? { size: number("size"), first: number("first"), dropped: number("dropped") } : extentOf(entry),
  };
}
