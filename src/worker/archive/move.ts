import { existsSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import type { Context } from "../context.ts";
import { isCompressed } from "../compress.ts";
import { writeJobFile } from "../job-file.ts";
import { LOG_FILES } from "../log.ts";
import type { Store } from "./store.ts";

/** What is stored of a log, the index first: the output is what takes long. */
const PLAIN = ["index", "output"];
const COMPRESSED = ["index.zst", "output.zst"];
/** The job's record goes along, and stays here, too. */
const RECORD = "job";

/** `WORKER/JOB/FILE`; the worker is the one that gave the job its id, by its name or, where it had none, its journal's. */
export function keyOf(instance: string, id: string, file: string): string {
  const dot = id.indexOf(".");
  return `${dot < 0 ? instance : id.slice(0, dot)}/${id}/${file}`;
}

/**
 * Moves an ended job's log into the archive. A daemon that dies between any two of these steps leaves a log that can be
 * read, here or there, and the next one goes on: files go only when the journal says that the log is there, and the
 * journal says so only once the store has verified it.
 */
export async function moveLog(
  { jobsDir, journal }: Pick<Context, "jobsDir" | "journal">,
  store: Store,
  { id, signal }: { readonly id: string; readonly signal: AbortSignal },
): Promise<void> {
  const directory = join(jobsDir, id);
  const files = isCompressed(directory) ? COMPRESSED : PLAIN;
  if (journal.logs.isHere(id) && files.every((file) => existsSync(join(directory, file)))) {
    for (const file of [...files, RECORD])
      if (existsSync(join(directory, file)))
        await store.put(keyOf(journal.instance, id, file), join(directory, file), signal);
    journal.logs.archived(id, files === COMPRESSED);
  } else if (!journal.logs.isHere(id) && !journal.logs.isArchived(id)) {
    throw new Error("that the job has ended is not on the disk yet"); // until then its files are all that tells
  }
  await letGo({ jobsDir, journal }, id);
}

/** Of a log that is in the archive: the job's record here tells so, should the journal be lost, and the files go. */
export async function letGo({ jobsDir, journal }: Pick<Context, "jobsDir" | "journal">, id: string): Promise<void> {
  const directory = join(jobsDir, id);
  try {
    const kept = journal.find(id);
    if (kept) writeJobFile(journal.instance, directory, { requestId: undefined, stoppedBy: undefined, ...kept });
  } catch {
    // A full disk has room when the files are gone; the journal has it.
  }
  for (const file of LOG_FILES) await rm(join(directory, file), { force: true });
  journal.logs.removed(id);
}
