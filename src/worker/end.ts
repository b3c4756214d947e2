import { killGroup, removeGroup } from "./cgroup.ts";
import type { Context } from "./context.ts";
import { endedOf, readExit } from "./exit.ts";
import { extentOf, usageOf, type Running } from "./running.ts";

/** Its supervisor is gone: what is left of the job is put away, and its end recorded and told. */
export function gone(context: Context, entry: Running): void {
  // A short job is gone before its start has been told.
  const told = entry.launched.promise.then(() => finish(context, entry));
  told.catch((error: unknown) =>
    context.options.log("error", "a job's end could not be recorded", { job: entry.job.id, error }),
  );
}

async function finish(context: Context, entry: Running): Promise<void> {
  const { archive, journal, options, running, spawner } = context;
  if (context.closed) return;
  const exit = readExit(entry.directory);
  if (!exit && entry.group !== undefined) killGroup(entry.group);
  const usage = usageOf(entry, exit);
  if (entry.group !== undefined) await removeGroup(entry.group);
  if (context.closed) return;
  entry.job = {
    ...entry.job,
    state: "ended",
    pid: Number(exit?.get("pid") ?? entry.job.pid),
    ...(exit && { startedAt: new Date(Number(exit.get("started_ns")) / 1e6) }),
    endedAt: exit ? new Date(Number(exit.get("ended_ns")) / 1e6) : new Date(),
    ended: endedOf(exit, usage, entry),
    usage,
    output: exit
      ? { size: Number(exit.get("size")), first: Number(exit.get("first")), dropped: Number(exit.get("dropped")) }
      : extentOf(entry),
  };
  journal.update(entry.job);
  running.delete(entry.job.id);
  entry.watcher?.close();
  entry.ended.resolve(entry.job);
  for (const wake of entry.followers) wake();
  setImmediate(() => {
    // Those who waited for the end have been answered.
    if (!context.closed) {
      spawner.refill();
      archive?.add(entry.job.id);
    }
    options.log("info", "job ended", { job: entry.job.id, how: entry.job.ended?.how });
  });
}
