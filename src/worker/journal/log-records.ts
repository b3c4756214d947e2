import type { DatabaseSync, SQLOutputValue } from "node:sqlite";
import { bytes, date } from "../model/job-check.ts";
import type { Job, JobLog, PruneReason } from "../model/job.ts";

/* Where ended jobs' logs are, in the journal: all of it is selected by SQL, because there may be a hundred thousand. */

/**
 * Of the table jobs, version 2. Times are ms since the epoch. log_bytes: on the local disk; log_at: since when `log` is
 * archived or pruned; log_until: it is pruned then, by the job's own policy; log_due: it is yet to be compressed, archived
 * or removed; 2 when it goes to no archive, by the job's own policy.
 */
export const LOG_SCHEMA = `
  ALTER TABLE jobs ADD COLUMN ended_at INTEGER;
  ALTER TABLE jobs ADD COLUMN log TEXT;
  ALTER TABLE jobs ADD COLUMN log_bytes INTEGER;
  ALTER TABLE jobs ADD COLUMN log_zstd INTEGER;
  ALTER TABLE jobs ADD COLUMN log_at INTEGER;
  ALTER TABLE jobs ADD COLUMN log_why TEXT;
  ALTER TABLE jobs ADD COLUMN log_until INTEGER;
  ALTER TABLE jobs ADD COLUMN log_due INTEGER;
  UPDATE jobs SET
    ended_at = round(unixepoch(coalesce(job ->> '$.endedAt', job ->> '$.createdAt'), 'subsec') * 1000),
    log = 'kept',
    log_bytes = (job ->> '$.output.size') - (job ->> '$.output.dropped')
    WHERE state = 'ended';
  CREATE INDEX jobs_log ON jobs (ended_at, log_bytes, log_due) WHERE log IN ('kept', 'compressed');
  CREATE INDEX jobs_log_until ON jobs (log_until) WHERE log_until IS NOT NULL;
  CREATE INDEX jobs_log_due ON jobs (log_due) WHERE log_due IS NOT NULL;
`;
const LOCAL = "log IN ('kept', 'compressed')";

/** What `record` needs, and what `logValues` gives. */
export const LOG_COLUMNS = "log, log_bytes, log_zstd, log_at, log_why, log_due";
export const LOG_VALUES =
  "ended_at = ?, log = ?, log_bytes = ?, log_zstd = ?, log_at = ?, log_why = ?, log_until = ?, log_due = ?";

export const LOG_NAMES = LOG_VALUES.replaceAll(" = ?", "");

type Row = Readonly<{ [column: string]: SQLOutputValue }>;

const PRUNE_REASONS: ReadonlySet<unknown> = new Set([
  "age",
  "count",
  "size",
  "free",
  "keep-for",
  "missing",
] satisfies PruneReason[]);

/** Where the log is, by a row's columns. Throws SyntaxError where they are damaged. */
export function logOf(row: Row): JobLog | undefined {
  const log = placeIn(row);
  const told =
    log === undefined ||
    (("at" in log ? date(log.at) : true) &&
      ("bytes" in log ? bytes(log.bytes) : true) &&
      (log.kind !== "pruned" || PRUNE_REASONS.has(log.why)));
  if (!told) throw new SyntaxError("where its log is cannot be told");
  return log;
}

/** The same; undefined where they are damaged. */
export function logIfTold(row: Row): JobLog | undefined {
  try {
    return logOf(row);
  } catch {
    return undefined;
  }
}

function placeIn(row: Row): JobLog | undefined {
  const [size, at, due] = [Number(row["log_bytes"]), new Date(Number(row["log_at"])), row["log_due"] !== null];
  switch (row["log"]) {
    case "kept":
    case "compressed":
      return { kind: row["log"], bytes: size, ...(due && { due }) };
    case "archived":
      return { kind: "archived", at, compressed: Number(row["log_zstd"]) === 1 };
    case "pruned":
      // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- pruned() wrote it
      return { kind: "pruned", bytes: size, at, why: row["log_why"] as PruneReason };
    default:
      if (row["log"] !== null && row["log"] !== undefined) throw new SyntaxError("its log is nowhere known");
      return undefined;
  }
}

export function logValues({ endedAt, log, logPolicy }: Job): (number | string | null)[] {
  const local = log?.kind === "kept" || log?.kind === "compressed";
  const until = local && endedAt && logPolicy?.keepForMs !== undefined ? endedAt.getTime() + logPolicy.keepForMs : null;
  return [
    endedAt?.getTime() ?? null,
    log?.kind ?? null,
    log && "bytes" in log ? log.bytes : null,
    log?.kind === "archived" ? Number(log.compressed) : null,
    log && "at" in log ? log.at.getTime() : null,
    log?.kind === "pruned" ? log.why : null,
    until,
    local && log.due ? (logPolicy?.archive === false ? 2 : 1) : null,
  ];
}

/** A log on this disk. */
export interface Local {
  readonly id: string;
  readonly endedMs: number;
  readonly bytes: number;
  /** It is pruned then, by its job's own policy. */
  readonly untilMs: number;
}

export interface LogRecords {
  /** Of those that something is yet to be done with. */
  due(): string[];
  /** Nothing is to be done with it any more. */
  settled(id: string): void;
  /** What is done with ended jobs' logs: where that is more than before, it is yet to be done with all on this disk. */
  steps(steps: readonly string[]): void;
  of(id: string): JobLog | undefined;
  compressed(id: string, bytes: number): void;
  /** On the disk when this returns. */
  archived(id: string, compressed: boolean): void;
  /** Nothing of one that was archived or pruned is on this disk. Of any other it is told that its files were gone. */
  removed(id: string): void;
  pruned(id: string, why: PruneReason, at: Date): void;
  /** All that are on this disk. */
  local(): { readonly count: number; readonly bytes: number };
  /** Those on this disk that ended first; with `archiving` none that may wait for the archive. */
  oldest(limit: number, archiving: boolean): Local[];
  /** Those that are pruned by their jobs' own policies, the earliest first. */
  expiring(limit: number, archiving: boolean): Local[];
}

export function logRecords(database: DatabaseSync): LogRecords {
  const due = database.prepare(
    "SELECT id FROM jobs INDEXED BY jobs_log_due WHERE log_due IS NOT NULL ORDER BY log_due, seq",
  );
  const settled = database.prepare("UPDATE jobs SET log_due = NULL WHERE id = ? AND log_due IS NOT NULL");
  const left = database.prepare("UPDATE jobs SET log_bytes = 0 WHERE id = ? AND log = 'archived'");
  const steps = database.prepare("SELECT value FROM meta WHERE key = 'log_steps'");
  const setSteps = database.prepare("INSERT OR REPLACE INTO meta VALUES ('log_steps', ?)");
  const allDue = database.prepare(
    `UPDATE jobs SET log_due = iif(job ->> '$.logPolicy.archive' = 0, 2, 1) WHERE ${LOCAL}`,
  );
  const of = database.prepare(`SELECT ${LOG_COLUMNS} FROM jobs WHERE id = ?`);
  const compressed = database.prepare(
    "UPDATE jobs SET log = 'compressed', log_bytes = ? WHERE id = ? AND log = 'kept'",
  );
  const archived = database.prepare(
    `UPDATE jobs SET log = 'archived', log_zstd = ?, log_at = ?, log_until = NULL WHERE id = ? AND ${LOCAL}`,
  );
  const gone = database.prepare(
    `UPDATE jobs SET log = 'pruned', log_why = 'missing', log_at = ?, log_until = NULL WHERE id = ? AND ${LOCAL}`,
  );
  const pruned = database.prepare(
    `UPDATE jobs SET log = 'pruned', log_why = ?, log_at = ?, log_until = NULL, log_due = 1 WHERE id = ? AND ${LOCAL}`,
  );
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
  // A number that is damaged may be too large for another kind.
  for (const each of [of, local, oldest, expiring]) each.setReadBigInts(true);
  const find = (id: string): JobLog | undefined => logIfTold(of.get(id) ?? {});
  const localOf = (row: Row): Local => ({
    id: String(row["id"]),
    endedMs: Number(row["ended_at"]),
    bytes: Number(row["log_bytes"]),
    untilMs: Number(row["log_until"] ?? Infinity),
  });
  return {
    due: () => due.all().map(({ id }) => String(id)),
    settled: (id) => void settled.run(id),
    steps(names) {
      const before = String(steps.get()?.["value"] ?? "").split(" ");
      if (names.some((name) => !before.includes(name))) allDue.run();
      if (before.join(" ") !== names.join(" ")) setSteps.run(names.join(" "));
    },
    of: find,
    compressed: (id, bytes) => void compressed.run(bytes, id),
    archived(id, zstd) {
      // On the disk, not on its way there: the files go next.
      database.exec("PRAGMA synchronous = FULL");
      try {
        archived.run(zstd ? 1 : 0, Date.now(), id);
      } finally {
        database.exec("PRAGMA synchronous = NORMAL");
      }
    },
    removed(id) {
      gone.run(Date.now(), id);
      left.run(id);
      settled.run(id);
    },
    pruned: (id, why, at) => void pruned.run(why, at.getTime(), id),
    local() {
      const row = local.get();
      return { count: Number(row?.["count"]), bytes: Number(row?.["bytes"]) };
    },
    oldest: (limit, archiving) => oldest.all(archiving ? 0 : 1, limit).map(localOf),
    expiring: (limit, archiving) => expiring.all(archiving ? 0 : 1, limit).map(localOf),
  };
}
