import type { SQLOutputValue } from "node:sqlite";
import type { Job, JobLog, PruneReason } from "../model/job.ts";

/* Where a job's log is, as the columns of its row have it; journal.ts tells what each column holds. */

export type Row = Readonly<{ [column: string]: SQLOutputValue }>;

/** The columns that `placeIn` reads. */
export const PLACE_COLUMNS = "log, log_bytes, log_zstd, log_at, log_why, log_due";

/** The columns that `placeValues` gives values for. */
export const PLACE_NAMES = "ended_at, log, log_bytes, log_zstd, log_at, log_why, log_until, log_due";

/** Holds for the years 1 to 9999, which google.protobuf.Timestamp has. */
export function isTime(date: Date): boolean {
  return date.getTime() >= -62_135_596_800_000 && date.getTime() <= 253_402_300_799_999;
}

function timeIn(ms: SQLOutputValue | undefined): Date {
  const at = new Date(Number(ms ?? NaN));
  if (!isTime(at)) throw new SyntaxError("the time of its log's move is none");
  return at;
}

/** Counts of bytes are 64 bits in the API. */
function bytesIn(value: SQLOutputValue | undefined): number {
  const bytes = Number(value ?? NaN);
  if (!Number.isInteger(bytes) || bytes < 0 || bytes >= 2 ** 63) throw new SyntaxError("the size of its log is none");
  return bytes;
}

const REASONS: readonly PruneReason[] = ["age", "count", "size", "free", "keep-for", "missing"];

function reasonIn(value: SQLOutputValue | undefined): PruneReason {
  const reason = REASONS.find((each) => each === value);
  if (reason === undefined) throw new SyntaxError("the reason why its log was pruned is none");
  return reason;
}

/** Returns where the log is; undefined before the job has ended. Throws SyntaxError when the columns are damaged. */
export function placeIn(row: Row): JobLog | undefined {
  const kind = row["log"];
  switch (kind) {
    case "kept":
    case "compressed":
      return { kind, bytes: bytesIn(row["log_bytes"]), ...(row["log_due"] !== null && { due: true }) };
    case "archived":
      return { kind, at: timeIn(row["log_at"]), compressed: Number(row["log_zstd"]) === 1 };
    case "pruned":
      return { kind, bytes: bytesIn(row["log_bytes"]), at: timeIn(row["log_at"]), why: reasonIn(row["log_why"]) };
    case null:
    case undefined:
      return undefined;
    default:
      throw new SyntaxError("the place of its log is none");
  }
}

/** Returns where the log is; undefined also when the columns are damaged. */
export function placeIfTold(row: Row): JobLog | undefined {
  try {
    return placeIn(row);
  } catch {
    return undefined;
  }
}

/** Returns the values of PLACE_NAMES, in that order. */
export function placeValues({ endedAt, log, logPolicy }: Job): (number | string | null)[] {
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
