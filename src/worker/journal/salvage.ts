import { statSync } from "node:fs";
import { DatabaseSync } from "node:sqlite";
import { JobError } from "../model/errors.ts";
import { VERSION } from "./journal.ts";
import type { Row } from "./log-place.ts";
import { keptIn, type JobRecord } from "./record.ts";
import { type Removed, removedOf } from "./removals.ts";

/** The rows of a damaged journal that can still be read. */
export interface Salvaged {
  readonly instance: string | undefined;
  readonly kept: readonly JobRecord[];
  /** Jobs that were removed, and whose files are yet to go. */
  readonly removed: readonly Removed[];
  /** Rows that could not be read. */
  readonly unread: number;
}

/** The size of the smallest row. */
const LEAST_ROW_BYTES = 64;

/** Reads the journal at `path`, a copy. Throws JobError when it is of a newer version. */
export function salvage(path: string): Salvaged {
  try {
    using database = new DatabaseSync(path);
    const header = database.prepare("PRAGMA user_version").get()?.["user_version"];
    const version = Number(noted(database, "version") ?? header);
    if (version > VERSION)
      throw new JobError(
        "unavailable",
        `the journal is of a newer version of jobs (${version}; this one writes ${VERSION})`,
      );
    const instance = noted(database, "instance");
    return { instance, removed: removedIn(database), ...rowsOf(database, statSync(path).size) };
  } catch (error) {
    if (error instanceof JobError) throw error;
    return { instance: undefined, kept: [], removed: [], unread: 0 };
  }
}

/** Returns what the table `meta` has under `key`; undefined where it cannot be read. */
function noted(database: DatabaseSync, key: string): string | undefined {
  try {
    return database.prepare("SELECT value FROM meta WHERE key = ?").get(key)?.["value"]?.toString();
  } catch {
    return undefined;
  }
}

function removedIn(database: DatabaseSync): Removed[] {
  try {
    return database.prepare("SELECT id, archived FROM removals").all().map(removedOf);
  } catch {
    return []; // damaged, or of a version that had none
  }
}

/** Reads rows from both ends up to the first damaged page, and the rows between one by one. */
function rowsOf(database: DatabaseSync, bytes: number): Pick<Salvaged, "kept" | "unread"> {
  const kept = new Map<number, JobRecord>();
  let unread = 0;
  let low = 0;
  const take = (row: Row | undefined): number => {
    const seq = Number(row?.["seq"]);
    const found = keptIn(row);
    if (found?.job.damaged !== undefined) unread++;
    else if (found) kept.set(found.seq, found);
    return seq;
  };
  const run = (order: "ASC" | "DESC", from: number): number => {
    let last = from;
    try {
      const rows = database.prepare(`SELECT * FROM jobs NOT INDEXED ORDER BY seq ${order}`);
      rows.setReadBigInts(true);
      for (const row of rows.iterate()) {
        if (order === "DESC" && Number(row["seq"]) <= low) return low;
        last = take(row);
      }
      return order === "ASC" ? Infinity : low;
    } catch {
      return last;
    }
  };
  low = run("ASC", 0);
  if (low < Infinity) {
    const high = run("DESC", low + Math.floor(bytes / LEAST_ROW_BYTES));
    const one = database.prepare("SELECT * FROM jobs WHERE seq = ?");
    one.setReadBigInts(true);
    for (let seq = low + 1; seq < high; seq++) {
      try {
        take(one.get(seq));
      } catch {
        unread++;
      }
    }
  }
  return { kept: [...kept.values()], unread };
}
