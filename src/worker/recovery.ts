import { readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { killGroup, readLimits, removeGroup } from "./cgroup.ts";
import { track, type Context } from "./context.ts";
import { gone } from "./end.ts";
import { readExit } from "./exit.ts";
import type { Record as Kept } from "./journal.ts";
import { startOf, type Running } from "./running.ts";

/** Removes the spares of a daemon that was killed. They may be putting themselves away. */
export function removeSpares(sparesDir: string): void {
  for (const file of readdirSync(sparesDir)) rmSync(join(sparesDir, file), { recursive: true, force: true });
}

/** Takes up the jobs of the daemon before this one. */
export function recover(context: Context): void {
  const { hierarchy, journal, running } = context;
  for (const kept of journal.alive()) takeUp(context, kept);
  if (hierarchy.kind === "none") return;
  // What was made for jobs to come, and what a start has left that was cut before it was recorded.
  for (const each of readdirSync(hierarchy.path, { withFileTypes: true }))
    if (each.isDirectory() && !running.has(each.name)) discardGroup(context, join(hierarchy.path, each.name));
}

function takeUp(context: Context, { job, stoppedBy }: Kept): void {
  const { journal, running, spawner } = context;
  const entry = track(context, job);
  entry.stoppedBy = stoppedBy;
  const { started, happened } = traces(context, entry);
  if (!happened) {
    // Its start was cut before exec: it did not happen. Whoever asked can find that out by its request id.
    running.delete(job.id);
    if (entry.group !== undefined) discardGroup(context, entry.group);
    rmSync(entry.directory, { recursive: true, force: true });
    journal.remove(job.id);
    return;
  }
  if (started)
    entry.job = {
      ...job,
      state: stoppedBy === undefined ? "running" : "stopping",
      pid: started.pid,
      startedAt: started.at,
      limits: entry.group === undefined ? job.limits : readLimits(entry.group, job.limits.keys()),
    };
  entry.startedMs = journal.rebooted ? undefined : started?.ms;
  entry.launched.resolve();
  if (journal.rebooted) gone(context, entry);
  else spawner.adopt(entry.directory, () => gone(context, entry));
}

/** What its files tell of a start. Where they cannot be read it may have happened: its supervisor is asked for. */
function traces(
  { options }: Context,
  entry: Running,
): { readonly started?: ReturnType<typeof startOf>; readonly happened: boolean } {
  try {
    const started = startOf(entry);
    return { started, happened: started !== undefined || readExit(entry.directory) !== undefined };
  } catch (error) {
    options.log("error", "a job's files cannot be read", { job: entry.job.id, error });
    return { happened: true };
  }
}

/** Of a start that did not happen; nobody waits for it. */
function discardGroup({ options }: Context, group: string): void {
  killGroup(group);
  removeGroup(group).catch((error: unknown) => options.log("error", "a cgroup could not be removed", { group, error }));
}
