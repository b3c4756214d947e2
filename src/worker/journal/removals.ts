import { open } from "node:fs/promises";
import type { DatabaseSync } from "node:sqlite";
import type { Row } from "./log-place.ts";
import { type JobRecord, keptIn } from "./record.ts";
import { labelTexts } from "./search.ts";

/* Jobs that are removed: from the moment that this is recorded, they are no jobs any more, and their files are to go. */

/** A job whose files are to go. */
export interface Removed {
  readonly id: string;
  /** The copy of its log in the archive goes, too; `perhaps` there is one, which was being made. */
  readonly archived: boolean | "perhaps";
}

/** An ended job, as the pruning of jobs sees it. */
export interface EndedRow {
  readonly seq: number;
  readonly id: string;
  readonly endedMs: number;
}

export interface Removals {
  /**
   * Removes the records of those of the jobs that have ended, and returns these. Nothing else of them may go before `synced`.
   * With `archived` a copy in the archive goes, too; one that is being made does in any case.
   */
  begin(ids: readonly string[], archived: boolean): Removed[];
  /** Resolves once all that was recorded is on the disk. */
  synced(): Promise<void>;
  /** The jobs whose files are yet to go, in the order of their ids, `limit` at most, behind `after`. */
  pending(limit: number, after?: string): Removed[];
  /** The job, when its files are yet to go. */
  find(id: string): Removed[];
  /** The files of these jobs are gone for good. */
  done(ids: readonly string[]): void;
  /** How many jobs have ended. Counts all of them. */
  countEnded(): number;
  /**
   * Jobs that have ended, those that ended first before the others, `limit` at most, behind `after`. With `archiving` none
   * whose log may wait for the archive.
   */
  endedFirst(limit: number, archiving: boolean, after?: Omit<EndedRow, "id">): EndedRow[];
}

/** Returns a row of the table `removals`, as it is read. */
export function removedOf({ id, archived }: Row): Removed {
  return { id: String(id), archived: archived === 1 ? "perhaps" : archived === 2 };
}

/** Returns the column `archived` of the table `removals`. */
export function archivedValue({ archived }: Removed): number {
  if (archived === "perhaps") return 1;
  return archived ? 2 : 0;
}

/**
 * @param columns a SELECT of the columns that a record is read from
 * @param walPath the database's -wal: SQLite has no locks on it (fcntl(2)), so that it may be closed
 */
export function removalsIn(database: DatabaseSync, columns: string, walPath: string): Removals {
  const find = database.prepare(`${columns} WHERE id = ? AND state = 'ended'`);
  find.setReadBigInts(true);
  const remove = removalFrom(database);
  const note = database.prepare("INSERT OR REPLACE INTO removals VALUES (?, ?)");
  const pending = database.prepare("SELECT id, archived FROM removals WHERE id > ? ORDER BY id LIMIT ?");
  const one = database.prepare("SELECT id, archived FROM removals WHERE id = ?");
  const done = database.prepare("DELETE FROM removals WHERE id = ?");
  return {
    begin(ids, archived) {
      return atomically(database, () =>
        ids.flatMap((id) => {
          const kept = keptIn(find.get(id));
          if (kept === undefined) return [];
          const { log } = kept.job;
          const making = log?.kind !== "archived" && log?.kind !== "pruned" && log?.due === true;
          const removed = { id, archived: making ? "perhaps" : log?.kind === "archived" && archived } as const;
          remove(kept);
          note.run(id, archivedValue(removed));
          return [removed];
        }),
      );
    },
    async synced() {
      // SQLite would sync in this thread. What it has moved into the database itself it has synced before.
      await using wal = await open(walPath);
      await wal.sync();
    },
    pending: (limit, after = "") => pending.all(after, limit).map(removedOf),
    find: (id) => one.all(id).map(removedOf),
    done: (ids) => atomically(database, () => ids.forEach((id) => done.run(id))),
    ...endedIn(database),
  };
}

function endedIn(database: DatabaseSync): Pick<Removals, "countEnded" | "endedFirst"> {
  const count = database.prepare("SELECT count(*) AS count FROM jobs INDEXED BY jobs_ended WHERE ended_at IS NOT NULL");
  const endedFirst = database.prepare(
    `SELECT seq, id, ended_at FROM jobs INDEXED BY jobs_ended
     WHERE ended_at IS NOT NULL AND (ended_at, seq) > (?, ?) AND (? OR log_due IS NOT 1) ORDER BY ended_at, seq LIMIT ?`,
  );
  endedFirst.setReadBigInts(true);
  return {
    countEnded: () => Number(count.get()?.["count"]),
    endedFirst: (limit, archiving, { endedMs, seq } = { endedMs: -Number.MAX_SAFE_INTEGER, seq: 0 }) =>
      endedFirst
        .all(endedMs, seq, archiving ? 0 : 1, limit)
        .map((row) => ({ seq: Number(row["seq"]), id: String(row["id"]), endedMs: Number(row["ended_at"]) })),
  };
}

/** Returns a function that removes the rows of a job. */
export function removalFrom(database: DatabaseSync): (kept: JobRecord) => void {
  const unlabel = database.prepare("DELETE FROM labels WHERE label = ? AND seq = ?");
  const remove = database.prepare("DELETE FROM jobs WHERE seq = ?");
  return ({ job, seq }) => {
    for (const label of labelTexts(job)) unlabel.run(label, seq);
    remove.run(seq);
  };
}

/** Makes all writes of `run`, or none of them. */
export function atomically<T>(database: DatabaseSync, run: () => T): T {
  database.exec("BEGIN");
  try {
    const result = run();
    database.exec("COMMIT");
    return result;
  } catch (error) {
    if (database.isTransaction) database.exec("ROLLBACK");
    throw error;
  }
}
