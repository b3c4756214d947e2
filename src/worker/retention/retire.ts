import { statSync } from "node:fs";
import { join } from "node:path";
import { reasonOf } from "../../os/errno.ts";
import { letGo } from "../archive/move.ts";
import { compressLog, removeUnfinished } from "../log/compress.ts";
import { bytesOnDisk, logFilesIn } from "../log/files.ts";
import { openPlainLog } from "../log/log.ts";
import type { Job } from "../model/job.ts";
import { type Parts, removeLog } from "./remove.ts";

/* What becomes of the log of a job that has ended: it is compressed and handed to the archive, each of it when wanted. */

export function compresses({ options }: Parts, { logPolicy }: Job): boolean {
  return (logPolicy?.compress ?? options.logCompress) === "zstd";
}

export function archives({ archive }: Parts, { logPolicy }: Job): boolean {
  return archive !== undefined && (logPolicy?.archive ?? true);
}

/** Goes on wherever the last try, or the last daemon, has left off. */
export async function retireLog(parts: Parts, id: string, signal: AbortSignal): Promise<void> {
  const { archive, journal, jobsDir, options } = parts;
  const directory = join(jobsDir, id);
  const job = journal.find(id)?.job;
  if (job?.log?.kind === "pruned") return removeLog(parts, id);
  if (job?.log?.kind === "archived") return letGo({ jobsDir, journal }, id);
  if (job?.log === undefined) return;
  const found = isWhole(job, directory) ? logFilesIn(directory) : "part";
  if (found === "part")
    options.log("warn", "files of a log are missing or damaged: the others are left as they are", { job: id });
  if (found === "plain" || found === "compressed") await compress(parts, job, found, signal);
  // A log without files may be in the archive, although the journal does not know that.
  if (archives(parts, job) && found !== "part") archive?.add(id);
  else if (found === "none") journal.logs.removed(id);
  else journal.logs.settled(id);
}

async function compress(parts: Parts, job: Job, found: "plain" | "compressed", signal: AbortSignal): Promise<void> {
  const { journal, jobsDir, options } = parts;
  const directory = join(jobsDir, job.id);
  const holed = archives(parts, job) && hasHoles(job, directory);
  // A log that was compressed, and only not removed, is finished whatever is wanted now.
  if (!compresses(parts, job) && !holed && found === "plain") return removeUnfinished(directory);
  try {
    if (await compressLog(directory, signal, holed ? 0 : undefined))
      journal.logs.compressed(job.id, bytesOnDisk(directory));
  } catch (error) {
    // A log that leaves a full disk uncompressed makes room, too.
    if (signal.aborted || !archives(parts, job)) throw error;
    options.log("warn", `a log is archived as it is: ${reasonOf(error)}`, { job: job.id });
  }
}

/** Returns false when the plain output is not as long as its job's end told: compressing what was put behind it may never end. */
function isWhole({ ended, output }: Job, directory: string): boolean {
  if (ended === undefined || ended.how.kind === "lost" || logFilesIn(directory) !== "plain") return true;
  try {
    using log = openPlainLog(directory);
    return log.extent().size === output.size;
  } catch {
    return true; // compressing it fails, and says why
  }
}

/** Returns whether the file has room for bytes that were not kept, which would be zeros in the archive. */
function hasHoles({ output }: Job, directory: string): boolean {
  const size = statSync(join(directory, "output"), { throwIfNoEntry: false })?.size ?? 0;
  return size > output.size - output.dropped;
}
