import { existsSync } from "node:fs";
import { DatabaseSync } from "node:sqlite";
import { crc32 } from "node:zlib";
import { isFailing } from "../model/failure.ts";
import type { Job } from "../model/job.ts";
import { makePrivate } from "../system/file.ts";
import { type Boot, interruption, thisBoot } from "../system/process.ts";
import { databasePath, migrate, openDatabase, unusable } from "./database.ts";
import { PLACE_COLUMNS, PLACE_NAMES, placeValues } from "./log-place.ts";
import { logRecords, type LogRecords } from "./log-records.ts";
import { encode, keptIn, type JobRecord } from "./record.ts";

/**
 * Each step makes a database of one version from the version before. A step that was released does not change. Each
 * version keeps the table `meta`, in which its number is noted.
 *
 * The columns of `jobs`: `crc32` is that of `job`, which is JSON. Times are ms since the epoch. `log` is where the log of an
 * ended job is; `log_bytes` what it takes on this disk; `log_at` when it was archived or pruned; `log_until` when it is pruned
 * by the job's own policy; `log_due` is not null while the log is yet to be compressed, archived or removed, and 2 when the
 * job's own policy keeps it out of the archive.
 */
const MIGRATIONS: readonly string[] = [
  `
  CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
  CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    request_id TEXT,
    state TEXT NOT NULL,
    stopped_by TEXT,
    job TEXT NOT NULL,
    crc32 INTEGER NOT NULL,
    ended_at INTEGER,
    log TEXT,
    log_bytes INTEGER,
    log_zstd INTEGER,
    log_at INTEGER,
    log_why TEXT,
    log_until INTEGER,
    log_due INTEGER
  );
  CREATE UNIQUE INDEX jobs_request ON jobs (owner, request_id) WHERE request_id IS NOT NULL;
  CREATE INDEX jobs_alive ON jobs (state) WHERE state <> 'ended';
  CREATE INDEX jobs_log ON jobs (ended_at, log_bytes, log_due) WHERE log IN ('kept', 'compressed');
  CREATE INDEX jobs_log_until ON jobs (log_until) WHERE log_until IS NOT NULL;
  CREATE INDEX jobs_log_due ON jobs (log_due) WHERE log_due IS NOT NULL;
`,
];
export const VERSION = MIGRATIONS.length;

/** Conditions that SQLite checks, so that other rows are not decoded. */
export interface Only {
  /** Only jobs that have not ended. */
  readonly alive?: boolean;
  readonly label?: readonly [string, string] | undefined;
}

/**
 * The record of all jobs, in SQLite. Held by one process at a time. Every method throws JobError `unavailable` when what it
 * needs is damaged. A row of which only the content is damaged is one job that says so, and fails nothing.
 */
export interface Journal extends Disposable {
  /** The name of the state directory, which never changes. This worker's cgroup is called by it. */
  readonly instance: string;
  readonly boot: Boot;
  /** Why nothing that ran when the journal was last open can run now; undefined when it can. */
  readonly interrupted: string | undefined;
  /** It was last closed by whoever had it; else what was recorded last may be missing. */
  readonly clean: boolean;
  readonly logs: LogRecords;
  /** Notes that jobs' groups are made in `path` from now on; returns where they may be: there, and where they were made before. */
  groupsIn(path: string | undefined): readonly string[];
  insert(job: Job, requestId: string | undefined): number;
  update(job: Job): void;
  stopping(id: string, by: string): void;
  remove(id: string): void;
  find(id: string): JobRecord | undefined;
  findRequest(owner: string, requestId: string): JobRecord | undefined;
  /** The id of the job that was started last; its record may be damaged. */
  newest(): string | undefined;
  /** The uid of the newest job, among the last thousand, that ran as a number of this range; a damaged record has none. */
  lastUid(range: { readonly first: number; readonly last: number }): number | undefined;
  /** Returns the ids of all jobs. */
  ids(): Set<string>;
  /** Returns the jobs that have not ended, as far as is known. */
  alive(): JobRecord[];
  /** Those that `keep` wants, newest first, below `before`: `limit` at most, and what is found until `untilMs` of performance.now(). */
  list(keep: (job: Job) => boolean, before: number, limit: number, only?: Only, untilMs?: number): Found;
}

/** `next`: where to go on, `before` what was seen; absent when all was. */
export interface Found {
  readonly records: readonly JobRecord[];
  readonly next?: number;
}

const COLUMNS = `SELECT seq, id, owner, state, job, crc32, stopped_by, request_id, ended_at, ${PLACE_COLUMNS} FROM jobs`;
const INSERT = `INSERT INTO jobs (id, owner, request_id, state, stopped_by, job, crc32, ${PLACE_NAMES})
  VALUES (?, ?, ?, ?, ?, ?, ?${", ?".repeat(PLACE_NAMES.split(",").length)})`;
const UPDATE = `UPDATE jobs SET state = ?, job = ?, crc32 = ?, ${PLACE_NAMES.replaceAll(/\w+/g, "$& = ?")} WHERE id = ?`;

function insertedValues({ job, requestId = null, stoppedBy = null }: Unnumbered): (number | string | null)[] {
  const text = encode(job);
  return [job.id, job.owner, requestId, job.state, stoppedBy, text, crc32(text), ...placeValues(job)];
}

type Unnumbered = Pick<JobRecord, "job"> & { readonly requestId?: string | null; readonly stoppedBy?: string | null };

/** Opens or makes `journal.db` in `stateDir`. Throws JobError `unavailable`, which says what is wrong; nothing has been changed then. */
export function openJournal(stateDir: string): Journal {
  const path = databasePath(stateDir);
  // A start reads these rows first: they are checked before anything is written.
  const { database, written } = openDatabase(path, VERSION, (seen) => {
    seen.prepare("SELECT * FROM meta").all();
    const alive = seen.prepare("SELECT * FROM jobs WHERE state <> 'ended'");
    alive.setReadBigInts(true);
    alive.all();
  });
  try {
    migrate(database, written, MIGRATIONS);
    return journalIn(database, path);
  } catch (error) {
    database.close();
    throw unusable(path, error);
  }
}

/** Makes a journal at `path` that holds `jobs` alone, in this order. It is on the disk when this returns. */
export function makeJournal(path: string, instance: string, jobs: Iterable<Unnumbered>): void {
  makePrivate(path);
  using database = new DatabaseSync(path);
  database.exec("PRAGMA synchronous = FULL");
  migrate(database, 0, MIGRATIONS);
  database.exec("BEGIN");
  // Marked as open, so that the next daemon looks at all directories.
  database.prepare("INSERT INTO meta VALUES ('instance', ?), ('open', '1')").run(instance);
  const insert = database.prepare(INSERT);
  for (const each of jobs) insert.run(...insertedValues(each));
  database.exec("COMMIT");
}

/** Returns the same functions, each called by `call`. */
function eachIn<T extends object>(functions: T, call: <R>(run: () => R) => R): T {
  const entries = Object.entries(functions).map(([name, run]: [string, (...args: unknown[]) => unknown]) => [
    name,
    (...args: unknown[]) => call(() => run(...args)),
  ]);
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- nothing but what calls them has changed
  return Object.fromEntries(entries) as T;
}

function journalIn(database: DatabaseSync, path: string): Journal {
  const told = <T>(call: () => T): T => {
    try {
      return call();
    } catch (error) {
      throw unusable(path, error);
    }
  };
  const toldOrFailing = <T>(call: () => T): T => {
    try {
      return call();
    } catch (error) {
      // A disk that is full, or fails, is another matter than damage.
      throw isFailing(error) ? error : unusable(path, error);
    }
  };
  const meta = metaIn(database);
  const boot = thisBoot();
  const interrupted = interruptedSince(meta, boot);
  const clean = meta.get("open") === undefined;
  const instance = meta.get("instance") ?? crypto.randomUUID().slice(0, 8);
  if (meta.get("instance") === undefined) meta.set("instance", instance);
  let marked = markOpen(database, meta, boot);
  return {
    instance,
    boot,
    interrupted,
    clean,
    logs: eachIn(logRecords(database), toldOrFailing),
    groupsIn: (group) => toldOrFailing(() => groupsIn(meta, group)),
    ...eachIn(
      writesOf(database, () => (marked ||= markOpen(database, meta, boot))),
      toldOrFailing,
    ),
    ...eachIn({ ...lookupsIn(database), list: listIn(database) }, told),
    [Symbol.dispose]() {
      try {
        database.exec("DELETE FROM meta WHERE key = 'open'");
      } catch {
        // No room: the next start looks at more than it would have to.
      }
      database.close();
    },
  };
}

interface Meta {
  get(key: string): string | undefined;
  set(key: string, value: string): void;
}

function metaIn(database: DatabaseSync): Meta {
  const get = database.prepare("SELECT value FROM meta WHERE key = ?");
  const set = database.prepare("INSERT OR REPLACE INTO meta VALUES (?, ?)");
  return { get: (key) => get.get(key)?.["value"]?.toString(), set: (key, value) => void set.run(key, value) };
}

function interruptedSince(meta: Meta, boot: Boot): string | undefined {
  const host = meta.get("boot_id");
  return host === undefined ? undefined : interruption({ host, init: meta.get("init") ?? boot.init }, boot);
}

/** Notes that the journal is in use, and since which boot. Returns false when the disk has no room for that, which keeps no daemon from starting. */
function markOpen(database: DatabaseSync, meta: Meta, boot: Boot): boolean {
  try {
    database.exec("BEGIN");
    meta.set("boot_id", boot.host);
    meta.set("init", boot.init);
    meta.set("open", "1");
    // Written into the database itself: when a -wal is removed, the next start notices that jobs may be missing.
    database.exec("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)");
    return true;
  } catch (error) {
    if (database.isTransaction) database.exec("ROLLBACK");
    if (isFailing(error)) return false;
    throw error;
  }
}

function pathsIn(text: string): string[] {
  const found: unknown = JSON.parse(text);
  if (Array.isArray(found) && found.every((each): each is string => typeof each === "string")) return found;
  throw new SyntaxError("where jobs' groups were is damaged");
}

function groupsIn(meta: Meta, path: string | undefined): readonly string[] {
  const text = meta.get("groups") ?? "[]";
  const former = pathsIn(text).filter((each) => each !== path && existsSync(each));
  const groups = path === undefined ? former : [path, ...former];
  const now = JSON.stringify(groups);
  try {
    if (now !== text) meta.set("groups", now);
  } catch (error) {
    if (!isFailing(error)) throw error;
  }
  return groups;
}

/** `mark` is called before a job is inserted: the journal may not say yet that it is in use. */
function writesOf(
  database: DatabaseSync,
  mark: () => void,
): Pick<Journal, "insert" | "remove" | "stopping" | "update"> {
  const insert = database.prepare(INSERT);
  const update = database.prepare(UPDATE);
  const stopping = database.prepare("UPDATE jobs SET stopped_by = coalesce(stopped_by, ?) WHERE id = ?");
  const remove = database.prepare("DELETE FROM jobs WHERE id = ?");
  return {
    insert(job, requestId) {
      mark();
      return Number(insert.run(...insertedValues({ job, requestId: requestId ?? null })).lastInsertRowid);
    },
    update(job) {
      const text = encode(job);
      update.run(job.state, text, crc32(text), ...placeValues(job), job.id);
    },
    stopping: (id, by) => void stopping.run(by, id),
    remove: (id) => void remove.run(id),
  };
}

function lookupsIn(
  database: DatabaseSync,
): Pick<Journal, "alive" | "find" | "findRequest" | "ids" | "lastUid" | "newest"> {
  const newest = database.prepare("SELECT id FROM jobs ORDER BY seq DESC LIMIT 1");
  const recent = database.prepare("SELECT job FROM jobs ORDER BY seq DESC LIMIT 1000");
  const ids = database.prepare("SELECT group_concat(id, ' ') AS ids FROM jobs");
  const find = database.prepare(`${COLUMNS} WHERE id = ?`);
  const findRequest = database.prepare(`${COLUMNS} WHERE owner = ? AND request_id = ?`);
  const alive = database.prepare(`${COLUMNS} WHERE state <> 'ended'`);
  for (const each of [find, findRequest, alive]) each.setReadBigInts(true);
  return {
    newest: () => newest.get()?.["id"]?.toString(),
    lastUid({ first, last }) {
      for (const { job } of recent.iterate()) {
        // Not decoded: a quotation mark within a text has a backslash before it.
        const uid = Number(/"user":"(\d+)"/.exec(String(job))?.[1]);
        if (uid >= first && uid <= last) return uid;
      }
      return undefined;
    },
    ids: () => new Set(String(ids.get()?.["ids"] ?? "").split(" ")),
    find: (id) => keptIn(find.get(id)),
    findRequest: (owner, requestId) => keptIn(findRequest.get(owner, requestId)),
    alive: () => alive.all().map((row) => keptIn(row)),
  };
}

const ALIVE_AT_ONCE = 512;

function listIn(database: DatabaseSync): Journal["list"] {
  const bySeq = database.prepare(`${COLUMNS} WHERE seq = ?`);
  const aliveBefore = database.prepare(
    `SELECT seq, 1 AS hit FROM jobs INDEXED BY jobs_alive WHERE state <> 'ended' AND seq < ? ORDER BY seq DESC LIMIT ${ALIVE_AT_ONCE}`,
  );
  // instr() finds an empty text everywhere.
  const allBefore = database.prepare(
    "SELECT seq, instr(job, ?2) > 0 AS hit FROM jobs WHERE seq < ?1 ORDER BY seq DESC",
  );
  for (const each of [bySeq, aliveBefore, allBefore]) each.setReadBigInts(true);

  function* candidates(before: number, { alive, label }: Only): Iterable<{ seq: number; hit: boolean }> {
    const text = label ? JSON.stringify(label) : "";
    for (let from = before; ;) {
      // A statement that is not read to its end holds nothing: what follows it is another one.
      const rows = alive ? aliveBefore.all(from) : allBefore.iterate(from, text);
      let count = 0;
      for (const row of rows) {
        count++;
        from = Number(row["seq"]);
        yield { seq: from, hit: Number(row["hit"]) === 1 };
      }
      if (!alive || count < ALIVE_AT_ONCE) return;
    }
  }

  return (keep, before, limit, only = {}, untilMs = Infinity) => {
    const records: JobRecord[] = [];
    let next = before;
    for (const { seq, hit } of candidates(before, only)) {
      // At least one is looked at, so that each call gets on.
      if (records.length === limit || (next !== before && performance.now() > untilMs)) return { records, next };
      next = seq;
      const kept = hit ? keptIn(bySeq.get(seq)) : undefined;
      if (kept && keep(kept.job)) records.push(kept);
    }
    return { records };
  };
}
