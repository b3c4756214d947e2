import { constants } from "node:fs";
import { open, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Archive } from "../archive/archive.ts";
import type { Journal } from "../journal/journal.ts";
import { LOG_FILES, removeLogFiles } from "../log/files.ts";
import { isFailing } from "../model/failure.ts";
import type { PruneReason } from "../model/job.ts";
import type { CheckedOptions } from "../model/options.ts";

/** What retires and prunes logs, and removes jobs, works on. */
export interface Parts {
  readonly options: CheckedOptions;
  readonly jobsDir: string;
  /** A directory on the same file system, which each daemon empties when it is opened. */
  readonly sparesDir: string;
  readonly journal: Journal;
  readonly archive: Archive | undefined;
  /** Tells whether a job that has ended is not put away yet. */
  readonly held: (id: string) => boolean;
  /** Ends the readers of a job's log, which is about to go. */
  readonly leave: (id: string) => void;
}

/**
 * Prunes a log, and throws when its files cannot be removed: the log is due then. The journal says so before the files go, so
 * that a daemon that is killed in between leaves nothing that would be found again.
 */
export async function pruneLog(parts: Parts, id: string, why: PruneReason): Promise<void> {
  const { journal, jobsDir, leave } = parts;
  try {
    journal.logs.pruned(id, why, new Date());
  } catch (error) {
    if (!isFailing(error)) throw error;
    await makeRoom(join(jobsDir, id));
    leave(id);
    journal.logs.pruned(id, why, new Date());
  }
  leave(id);
  await removeLog(parts, id);
}

/** Removes the directory of a job whose log was pruned. */
export async function removeLog({ journal, jobsDir }: Parts, id: string): Promise<void> {
  const directory = join(jobsDir, id);
  await empty(directory);
  await rm(directory, { recursive: true, force: true });
  journal.logs.removed(id);
}

/** Has a log make the room that the journal lacks. Its index goes first: nobody takes the rest for an empty log. */
export async function makeRoom(directory: string): Promise<void> {
  await empty(directory);
  removeLogFiles(directory);
}

/** Frees the blocks of a log, whose files a slow client's reader may keep open. */
export async function empty(directory: string): Promise<void> {
  for (const file of LOG_FILES) {
    try {
      // A link would lead to a file that is not the job's, and a FIFO is waited for.
      await using handle = await open(
        join(directory, file),
        constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW,
      );
      await handle.truncate();
    } catch {
      // The file does not exist, or is removed all the same.
    }
  }
}
