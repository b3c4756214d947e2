import type { DatabaseSync } from "node:sqlite";
import type { JobLog, PruneReason } from "../model/job.ts";
import { PLACE_COLUMNS, placeIfTold, type Row } from "./log-place.ts";

/* The logs of ended jobs, in the journal. SQL selects them by indexes, because there may be a hundred thousand. */

/** A log on this disk. Times are ms since the epoch. */
export interface Local {
  readonly id: string;
  readonly endedMs: number;
  readonly bytes: number;
  /** The log is pruned then, by its job's own policy. */
  readonly untilMs: number;
}

/** What is yet to be done with logs. */
interface Dues {
  /** Ids of the jobs whose logs something is yet to be done with. */
  due(): string[];
  /** Nothing is to be done with the log any more. */
  settled(id: string): void;
  /** Names what is done with ended jobs' logs. A step that is new is yet to be done with each log on this disk. */
  steps(steps: readonly string[]): void;
}

/** Where each log is. */
interface Places {
  of(id: string): JobLog | undefined;
  compressed(id: string, bytes: number): void;
  /** Is on the disk when it returns: the files go next. */
  archived(id: string, compressed: boolean): void;
  /** The local files are gone. A log that was neither archived nor pruned is marked as pruned, with `missing` as the reason. */
  removed(id: string): void;
  pruned(id: string, why: PruneReason, at: Date): void;
}

/** Which logs are on this disk. With `archiving` none is among `oldest` and `expiring` that may wait for the archive. */
interface Locals {
  local(): { readonly count: number; readonly bytes: number };
  /** Those of the jobs that ended first. */
  oldest(limit: number, archiving: boolean): Local[];
  /** Those that are pruned by their jobs' own policies, the earliest first. */
  expiring(limit: number, archiving: boolean): Local[];
}

export type LogRecords = Dues & Places & Locals;

export function logRecords(database: DatabaseSync): LogRecords {
  const dues = duesIn(database);
  return { ...dues, ...placesIn(database, (id) => dues.settled(id)), ...localsIn(database) };
}

const LOCAL = "log IN ('kept', 'compressed')";

function duesIn(database: DatabaseSync): Dues {
  const due = database.prepare(
    "SELECT id FROM jobs INDEXED BY jobs_log_due WHERE log_due IS NOT NULL ORDER BY log_due, seq",
  );
  const settled = database.prepare("UPDATE jobs SET log_due = NULL WHERE id = ? AND log_due IS NOT NULL");
  const steps = database.prepare("SELECT value FROM meta WHERE key = 'log_steps'");
  const setSteps = database.prepare("INSERT OR REPLACE INTO meta VALUES ('log_steps', ?)");
  // The JSON is not parsed, because one damaged record would fail all of it. Within a text quotation marks are escaped.
  const allDue = database.prepare(
    `UPDATE jobs SET log_due = iif(instr(job, '"archive":false') > 0, 2, 1) WHERE ${LOCAL}`,
  );
  return {
    due: () => due.all().map(({ id }) => String(id)),
    settled: (id) => void settled.run(id),
    steps(names) {
      const before = String(steps.get()?.["value"] ?? "").split(" ");
      if (names.some((name) => !before.includes(name))) allDue.run();
      if (before.join(" ") !== names.join(" ")) setSteps.run(names.join(" "));
    },
  };
}

function placesIn(database: DatabaseSync, settled: (id: string) => void): Places {
  const of = database.prepare(`SELECT ${PLACE_COLUMNS} FROM jobs WHERE id = ?`);
  of.setReadBigInts(true); // a number that is damaged may be too large for another kind
  const compressed = database.prepare(
    "UPDATE jobs SET log = 'compressed', log_bytes = ? WHERE id = ? AND log = 'kept'",
  );
  const archived = database.prepare(
    `UPDATE jobs SET log = 'archived', log_zstd = ?, log_at = ?, log_until = NULL WHERE id = ? AND ${LOCAL}`,
  );
  const gone = database.prepare(
    `UPDATE jobs SET log = 'pruned', log_why = 'missing', log_at = ?, log_until = NULL WHERE id = ? AND ${LOCAL}`,
  );
  const empty = database.prepare("UPDATE jobs SET log_bytes = 0 WHERE id = ? AND log = 'archived'");
  const pruned = database.prepare(
    `UPDATE jobs SET log = 'pruned', log_why = ?, log_at = ?, log_until = NULL, log_due = 1 WHERE id = ? AND ${LOCAL}`,
  );
  return {
    of: (id) => placeIfTold(of.get(id) ?? {}),
    compressed: (id, bytes) => void compressed.run(bytes, id),
    archived(id, zstd) {
      database.exec("PRAGMA synchronous = FULL");
      try {
        archived.run(zstd ? 1 : 0, Date.now(), id);
      } finally {
        database.exec("PRAGMA synchronous = NORMAL");
      }
    },
    removed(id) {
      gone.run(Date.now(), id);
      empty.run(id);
      settled(id);
    },
    pruned: (id, why, at) => void pruned.run(why, at.getTime(), id),
  };
}

function localsIn(database: DatabaseSync): Locals {
  const local = database.prepare(
    `SELECT count(*) AS count, total(log_bytes) AS bytes FROM jobs INDEXED BY jobs_log WHERE ${LOCAL}`,
  );
  const oldest = database.prepare(
    `SELECT id, ended_at, log_bytes FROM jobs INDEXED BY jobs_log
     WHERE ${LOCAL} AND (? OR log_due IS NOT 1) ORDER BY ended_at LIMIT ?`,
  );
  const expiring = database.prepare(
    `SELECT id, ended_at, log_bytes, log_until FROM jobs INDEXED BY jobs_log_until
     WHERE log_until IS NOT NULL AND (? OR log_due IS NOT 1) ORDER BY log_until LIMIT ?`,
  );
  for (const each of [local, oldest, expiring]) each.setReadBigInts(true);
  const localOf = (row: Row): Local => ({
    id: String(row["id"]),
    endedMs: Number(row["ended_at"]),
    bytes: Number(row["log_bytes"]),
    untilMs: Number(row["log_until"] ?? Infinity),
  });
  return {
    local() {
      const row = local.get();
      return { count: Number(row?.["count"]), bytes: Number(row?.["bytes"]) };
    },
    oldest: (limit, archiving) => oldest.all(archiving ? 0 : 1, limit).map(localOf),
    expiring: (limit, archiving) => expiring.all(archiving ? 0 : 1, limit).map(localOf),
  };
}
