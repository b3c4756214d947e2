import { existsSync, rmSync, statSync, truncateSync } from "node:fs";
import { rm, truncate } from "node:fs/promises";
import { join } from "node:path";
import { reasonOf } from "../../os/errno.ts";
import type { Archive } from "../archive/archive.ts";
import { letGo } from "../archive/move.ts";
import type { Journal } from "../journal/journal.ts";
import { compressLog, removeUnfinished } from "../log/compress.ts";
import { bytesOnDisk, LOG_FILES, logFilesIn } from "../log/files.ts";
import { openPlainLog } from "../log/log.ts";
import { isFailing } from "../model/failure.ts";
import type { Job } from "../model/job.ts";
import type { CheckedOptions } from "../model/options.ts";
import { openLine } from "../system/retry-queue.ts";
import { openPruner, type Prune } from "./prune.ts";

/* What becomes of the logs of ended jobs: they are compressed, then archived, in the end pruned, each of it when wanted. */

/** Disposing ends what is under way; the next daemon goes on. */
export interface Retirement extends AsyncDisposable {
  /** Whether something is to be done with the log when the job has ended, before it is pruned. */
  wanted(job: Job): boolean;
  /** The job has ended, and that is recorded. */
  ended(job: Job): void;
}

interface Parts {
  readonly options: CheckedOptions;
  readonly jobsDir: string;
  readonly journal: Journal;
  readonly archive: Archive | undefined;
  /** Readers of a job's log are told that it goes. */
  readonly leave: (id: string) => void;
}

/** Goes on with what the daemon before has left. */
export function openRetirement({ options, jobsDir, journal, archive, leave }: Parts): Retirement {
  const { logs } = journal;
  const line = openLine({
    work: retire,
    told: { failed: "logs cannot be compressed", again: "logs can be compressed again" },
    log: options.log,
    pauses: options.compressPauses,
  });
  /** Whether the journal knows what is yet to be done with the logs of before. */
  let known = false;
  const recording = openLine({
    async work() {
      record();
      pruner.run();
    },
    told: {
      failed: "it cannot be recorded what is to be done with logs",
      again: "it is recorded what is to be done with logs",
      facts: { job: undefined }, // it is of all of them
    },
    log: options.log,
    pauses: options.compressPauses,
  });
  const pruner = openPruner({
    limits: options.logPrune ?? {},
    jobsDir,
    logs,
    archiving: archive !== undefined,
    ready: () => known || archive === undefined,
    busy: () => line.busy(),
    prune,
    log: options.log,
  });

  function compresses({ logPolicy }: Job): boolean {
    return (logPolicy?.compress ?? options.logCompress) === "zstd";
  }

  function archives({ logPolicy }: Job): boolean {
    return archive !== undefined && (logPolicy?.archive ?? true);
  }

  /** Takes up wherever the last try, or the last daemon, has left off. */
  async function retire(id: string, signal: AbortSignal): Promise<void> {
    const directory = join(jobsDir, id);
    const job = journal.find(id)?.job;
    if (job?.log?.kind === "pruned") return remove(id);
    if (job?.log?.kind === "archived") return letGo({ jobsDir, journal }, id);
    if (job?.log === undefined) return;
    const found = isWhole(job, directory) ? logFilesIn(directory) : "part";
    if (found === "part")
      options.log("warn", "files of a log are missing or damaged: the others are left as they are", { job: id });
    try {
      if (found === "plain" || found === "compressed") await compress(job, directory, found, signal);
      // It may be in the archive already, without the journal's knowing.
      if (archives(job) && found !== "part") archive?.add(id);
      else if (found === "none") logs.removed(id);
      else logs.settled(id);
    } finally {
      setImmediate(() => pruner.run()); // when it is not its turn any more
    }
  }

  async function compress(
    job: Job,
    directory: string,
    found: "plain" | "compressed",
    signal: AbortSignal,
  ): Promise<void> {
    const holed = archives(job) && hasHoles(job, directory);
    // One that was cut when it had compressed all goes on, whatever is wanted now.
    if (!compresses(job) && !holed && found === "plain") return removeUnfinished(directory);
    try {
      if (await compressLog(directory, signal, holed ? 0 : undefined)) logs.compressed(job.id, bytesOnDisk(directory));
    } catch (error) {
      // It may leave a full disk as it is, which makes room.
      if (signal.aborted || !archives(job)) throw error;
      options.log("warn", `a log is archived as it is: ${reasonOf(error)}`, { job: job.id });
    }
  }

  /** The journal tells of it before the files go: whoever is cut in between leaves nothing that would be found again. */
  async function prune(id: string, why: Parameters<Prune>[1]): Promise<void> {
    try {
      logs.pruned(id, why, new Date());
    } catch (error) {
      if (!isFailing(error)) throw error;
      // The journal has no room to say so: the log makes it. Without its index nobody takes it for an empty one.
      for (const file of LOG_FILES) {
        const path = join(jobsDir, id, file);
        if (existsSync(path)) truncateSync(path);
        rmSync(path, { force: true });
      }
      leave(id);
      logs.pruned(id, why, new Date());
    }
    leave(id);
    await remove(id).catch((error: unknown) => {
      options.log("error", `a pruned log cannot be removed: ${reasonOf(error)}`, { job: id });
      line.add(id); // it is due, and tried again
    });
  }

  async function remove(id: string): Promise<void> {
    // A reader whose client is slow has them open yet.
    for (const file of LOG_FILES) await truncate(join(jobsDir, id, file)).catch(() => {});
    await rm(join(jobsDir, id), { recursive: true, force: true });
    logs.removed(id);
  }

  const steps = [...(options.logCompress === "zstd" ? ["compress"] : []), ...(archive ? ["archive"] : [])];

  function record(): void {
    logs.steps(steps);
    known = true;
  }

  try {
    record();
  } catch (error) {
    if (!isFailing(error)) throw error;
    // What is done with them makes the room to say so.
    for (const { id } of logs.oldest(-1, false)) line.add(id);
    recording.add("");
  }
  for (const id of logs.due()) line.add(id);
  pruner.run();
  return {
    wanted: (job) => compresses(job) || archives(job),
    ended(job) {
      const due = job.log && "due" in job.log && job.log.due;
      if (due) line.add(job.id);
      // When a log has had its turn it is looked at, too, but in a pause none has.
      if (!due || line.busy() === undefined) pruner.run();
    },
    async [Symbol.asyncDispose]() {
      await pruner[Symbol.asyncDispose]();
      await recording[Symbol.asyncDispose]();
      await line[Symbol.asyncDispose]();
    },
  };
}

/** False when the plain output is not as long as its job's end told: compressing what was put behind it may never end. */
function isWhole({ ended, output }: Job, directory: string): boolean {
  if (ended === undefined || ended.how.kind === "lost" || logFilesIn(directory) !== "plain") return true;
  try {
    using log = openPlainLog(directory);
    return log.extent().size === output.size;
  } catch {
    return false;
  }
}

/** Whether there is room in it for bytes that were not kept: of an archived file that would be zeros. */
function hasHoles({ output }: Job, directory: string): boolean {
  const size = statSync(join(directory, "output"), { throwIfNoEntry: false })?.size ?? 0;
  return size > output.size - output.dropped;
}
