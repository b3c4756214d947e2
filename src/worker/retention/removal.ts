import { open, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { codeOf } from "../../os/errno.ts";
import { removeArchived } from "../archive/move.ts";
import type { Removed } from "../journal/removals.ts";
import { JobError } from "../model/errors.ts";
import { isFailing } from "../model/failure.ts";
import { openRetryQueue } from "../system/retry-queue.ts";
import { empty, makeRoom, type Parts } from "./remove.ts";

/*
 * Jobs that have ended are removed: first their records, which is on the disk before anything else goes, then their
 * directories, which leave their place in one step, then what is in the archive. Whatever cuts that, the next daemon goes on.
 */

export interface Removal extends AsyncDisposable {
  /**
   * Removes those of the jobs that have ended, with `archived` from the archive, too. Resolves to their ids, once their
   * directories are gone. Throws JobError `exhausted` when the disk has no room to say so; nothing has been removed then.
   */
  remove(ids: readonly string[], archived: boolean): Promise<string[]>;
  /** Goes on with what an earlier daemon has left. */
  resume(signal: AbortSignal): Promise<void>;
}

/** How many jobs are removed together. */
export const BATCH = 32;

/** @param drop takes a log from those that something is yet to be done with */
export function openRemoval(parts: Parts, drop: (id: string) => Promise<void>): Removal {
  const { journal, options } = parts;
  const under = new Set<Promise<unknown>>();
  let told = false;
  const queue = openRetryQueue({
    async work(id, signal) {
      if ((await finish(parts, id, signal)) || told) return;
      told = true;
      options.log("warn", "copies of removed jobs' logs wait for a daemon that has their archive (jobsd --archive)");
    },
    told: { failed: "a removed job's files cannot be removed", again: "removed jobs' files can be removed again" },
    log: options.log,
    pauses: options.archivePauses,
  });

  /** Finishes what needs no archive. What needs one, or fails, is tried for as long as it takes. */
  async function finishSoon(removed: readonly Removed[]): Promise<void> {
    const here = removed.filter(({ archived }) => !archived);
    const elsewhere = removed.filter(({ archived }) => archived);
    try {
      await putAside(parts, removed);
      journal.removals.done(here.map(({ id }) => id));
    } catch {
      for (const { id } of here) queue.add(id); // which tells why
    }
    for (const { id } of elsewhere) queue.add(id);
  }

  async function remove(ids: readonly string[], archived: boolean): Promise<string[]> {
    const removed = await begin(parts, ids, archived);
    for (const { id } of removed) parts.leave(id);
    await Promise.all(removed.map(({ id }) => drop(id)));
    await finishSoon(removed);
    return removed.map(({ id }) => id);
  }

  return {
    remove(ids, archived) {
      const removing = remove(ids, archived).finally(() => under.delete(removing));
      under.add(removing);
      return removing;
    },
    async resume(signal) {
      for (let after = ""; !signal.aborted;) {
        const removed = journal.removals.pending(BATCH, after);
        const last = removed.at(-1);
        if (last === undefined) return;
        await finishSoon(removed);
        after = last.id;
      }
    },
    async [Symbol.asyncDispose]() {
      await Promise.allSettled(under);
      await queue[Symbol.asyncDispose]();
    },
  };
}

/**
 * Removes what is left of a removed job. Resolves to false where a copy in the archive is left to a daemon that has one. Throws
 * what keeps a file from being removed.
 */
async function finish(parts: Parts, id: string, signal: AbortSignal): Promise<boolean> {
  const { archive, journal } = parts;
  const removed = journal.removals.find(id);
  await putAside(parts, removed);
  if (!archive && removed.some(({ archived }) => archived === true)) return false;
  for (const { archived } of removed)
    if (archived && archive) await removeArchived(archive.store, journal.instance, id, signal);
  journal.removals.done([id]);
  return true;
}

/** Removes the records. On a full disk the logs make room for saying so. */
async function begin({ journal, jobsDir }: Parts, ids: readonly string[], archived: boolean): Promise<Removed[]> {
  try {
    return journal.removals.begin(ids, archived);
  } catch (error) {
    if (!isFailing(error)) throw error;
  }
  for (const id of ids) {
    if (journal.find(id)?.job.state !== "ended") continue;
    await makeRoom(join(jobsDir, id));
  }
  try {
    return journal.removals.begin(ids, archived);
  } catch (error) {
    if (!isFailing(error)) throw error;
    throw new JobError(
      "exhausted",
      "the disk has no room to record that a job is removed; its output made none either",
      {
        facts: { stage: "journal" },
        cause: error,
      },
    );
  }
}

/** Takes directories from their place, so that no recovery finds a part of one, and removes them there. */
async function putAside({ journal, jobsDir, sparesDir }: Parts, removed: readonly Removed[]): Promise<void> {
  await journal.removals.synced();
  const aside = ({ id }: Removed): string => join(sparesDir, `.removed-${id}`);
  await Promise.all(
    removed.map(async (each) => {
      await rm(aside(each), { recursive: true, force: true }); // what a try that failed has left
      await rename(join(jobsDir, each.id), aside(each)).catch((error: unknown) => {
        if (codeOf(error) !== "ENOENT") throw error;
      });
    }),
  );
  // A crash of the host might bring back directories that the journal has forgotten.
  await using directory = await open(jobsDir);
  await directory.sync();
  await Promise.all(
    removed.map(async (each) => {
      await empty(aside(each));
      await rm(aside(each), { recursive: true, force: true });
    }),
  );
}
