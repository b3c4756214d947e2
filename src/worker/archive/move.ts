import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { writeJobFile } from "../journal/job-file.ts";
import type { Journal } from "../journal/journal.ts";
import { COMPRESSED_FILES, logFilesIn, PLAIN_FILES, removeLogFiles } from "../log/files.ts";
import { isFailing } from "../model/failure.ts";
import { type Store, unavailable } from "./store.ts";

/** The logs of a worker's jobs, and its record of them. */
interface Home {
  readonly jobsDir: string;
  readonly journal: Journal;
}

/** The job's record goes along, and stays here, too. */
const RECORD = "job";

/** `WORKER/JOB/FILE`; the worker is the one that gave the job its id, by its name or, where it had none, its journal's. */
export function objectKey(instance: string, id: string, file: string): string {
  const dot = id.indexOf(".");
  return `${dot < 0 ? instance : id.slice(0, dot)}/${id}/${file}`;
}

/**
 * Moves an ended job's log into the archive. A daemon that dies between any two of these steps leaves a log that can be
 * read, here or there, and the next one goes on: files go only when the journal says that the log is there, and the
 * journal says so only once the store has verified it.
 */
export async function moveLog(
  { jobsDir, journal }: Home,
  store: Store,
  { id, signal }: { readonly id: string; readonly signal: AbortSignal },
): Promise<void> {
  const { logs } = journal;
  const directory = join(jobsDir, id);
  const key = (file: string): string => objectKey(journal.instance, id, file);
  const place = logs.of(id)?.kind;
  if (!journal.find(id)) return; // it was removed
  // A job's files alone tell of it before its end is recorded.
  if (place === undefined) throw new Error("that the job has ended is not on the disk yet");
  if (place === "pruned") return;
  if (place === "archived") return letGo({ jobsDir, journal }, id);
  const found = logFilesIn(directory);
  switch (found) {
    case "compressed":
    case "plain":
      for (const file of found === "compressed" ? COMPRESSED_FILES : PLAIN_FILES)
        await store.put(key(file), join(directory, file), signal);
      if (existsSync(join(directory, RECORD))) await store.put(key(RECORD), join(directory, RECORD), signal);
      archived(journal, id, directory, found === "compressed");
      return letGo({ jobsDir, journal }, id);
    case "part":
      throw new Error("a part of its files is missing");
    default: {
      // A daemon that died in the midst of this, or whose last words a power cut took.
      const compressedThere = await isCompressedIn(store, key, signal);
      if (compressedThere !== undefined) archived(journal, id, directory, compressedThere);
      logs.removed(id);
    }
  }
}

/** Removes a job's log from the archive, and what moving it has left there. May be called again. */
export function removeArchived(store: Store, instance: string, id: string, signal: AbortSignal): Promise<void> {
  return store.remove(dirname(objectKey(instance, id, RECORD)), [...PLAIN_FILES, ...COMPRESSED_FILES, RECORD], signal);
}

/** Whether the log that is in the archive is compressed; undefined when none is. Throws JobError `unavailable`. */
export async function isCompressedIn(
  store: Store,
  key: (file: string) => string,
  signal: AbortSignal,
): Promise<boolean | undefined> {
  try {
    if (await store.has(key("output.zst"), signal)) return true;
    return (await store.has(key("output"), signal)) ? false : undefined;
  } catch (error) {
    throw unavailable(key("output"), error);
  }
}

/** Records that a log is archived. Where the journal has no room for that, the log's files go first: readers ask the archive then. */
function archived({ logs }: Pick<Journal, "logs">, id: string, directory: string, compressed: boolean): void {
  try {
    logs.archived(id, compressed);
  } catch (error) {
    if (!isFailing(error)) throw error;
    removeLogFiles(directory);
    logs.archived(id, compressed);
  }
}

/** Removes the local files of an archived log. The file `job` says that it is archived, should the journal be lost. */
export async function letGo({ jobsDir, journal }: Home, id: string): Promise<void> {
  const directory = join(jobsDir, id);
  try {
    const kept = journal.find(id);
    if (kept) writeJobFile(journal.instance, directory, { requestId: undefined, stoppedBy: undefined, ...kept });
  } catch {
    // A full disk has room when the files are gone; the journal has it.
  }
  removeLogFiles(directory);
  journal.logs.removed(id);
}
