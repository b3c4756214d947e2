import { randomBytes } from "node:crypto";
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
import { archivedValue, atomically, removalFrom, type Removals, removalsIn, type Removed } from "./removals.ts";
import { type Found, labelTexts, type Search, searchIn } from "./search.ts";

/**
 * Each step makes a database of one version from the version before. A step that was released does not change. Each
 * version keeps the table `meta`, in which its number is noted.
 *
 * The columns of `jobs`: `crc32` is that of `job`, which is JSON. Times are ms since the epoch. `log` is where the log of an
 * ended job is; `log_bytes` what it takes on this disk; `log_at` when it was archived or pruned; `log_until` when it is pruned
 * by the job's own policy; `log_due` is not null while the log is yet to be compressed, archived or removed, and 2 when the
 * job's own policy keeps it out of the archive.
 *
 * `labels` has a row for each label of each job: JSON of the key and the value, and the job's `seq`. `removals` has the jobs
 * whose records are gone and whose files are yet to go; `archived` is 2 where the copy in the archive goes, too, and 1
 * where there may be one, as versions before wrote it for both.
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
  // A damaged record keeps no journal from being migrated: it has no labels then, as in every search.
  `
  CREATE INDEX jobs_owner ON jobs (owner);
  CREATE INDEX jobs_ended ON jobs (ended_at, log_due) WHERE ended_at IS NOT NULL;
  CREATE TABLE labels (label TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (label, seq)) WITHOUT ROWID;
  INSERT OR IGNORE INTO labels
    SELECT label.value, seq FROM jobs, json_each(iif(json_valid(job), job, '{}'), '$.labels."$map"') AS label;
  CREATE TABLE removals (id TEXT PRIMARY KEY, archived INTEGER NOT NULL) WITHOUT ROWID;
`,
];
export const VERSION = MIGRATIONS.length;

/**
 * The record of all jobs, in SQLite. Held by one process at a time. Every method throws JobError `unavailable` when what it
 * needs is damaged. A row of which only the content is damaged is one job that says so, and fails nothing.
 */
export interface Journal extends Disposable {
  /** The name of the state directory, which never changes. This worker's cgroup is called by it. */
  readonly instance: string;
  readonly boot: Boot;
  /** 16 bytes that nobody else knows. */
  readonly secret: Buffer;
  /** Why nothing that ran when the journal was last open can run now; undefined when it can. */
  readonly interrupted: string | undefined;
  /** It was last closed by whoever had it; else what was recorded last may be missing. */
  readonly clean: boolean;
  /** An id, as `settle` was given it: no job with an id that sorts before it can be missing. Undefined when that is not known. */
  readonly settled: string | undefined;
  readonly logs: LogRecords;
  readonly removals: Removals;
  /** Notes that jobs' groups are made in `path` from now on; returns where they may be: there, and where they were made before. */
  groupsIn(path: string | undefined): readonly string[];
  /** Brings all that was recorded into the database itself, for good. All jobs with ids that sort before `id` have been inserted. */
  settle(id: string): void;
  /** Returns the number of the job's row. */
  insert(job: Job, requestId: string | undefined): number;
  update(job: Job): void;
  stopping(id: string, by: string): void;
  remove(id: string): void;
  find(id: string): JobRecord | undefined;
  /** The owner of a job, whatever else of its record is damaged; undefined when there is no such job. */
  ownerOf(id: string): string | undefined;
  findRequest(owner: string, requestId: string): JobRecord | undefined;
  /** The id of the job that was started last; its record may be damaged. */
  newest(): string | undefined;
  /** The uid of the newest job, among the last thousand, that ran as a number of this range; a damaged record has none. */
  lastUid(range: { readonly first: number; readonly last: number }): number | undefined;
  /** Returns whether there is such a job, or was one whose files are yet to go. */
  knows(id: string): boolean;
  /** Returns the jobs that have not ended, as far as is known. */
  alive(): JobRecord[];
  list(search: Search): Found;
}

const COLUMNS = `SELECT seq, id, owner, state, job, crc32, stopped_by, request_id, ended_at, ${PLACE_COLUMNS} FROM jobs`;
const INSERT = `INSERT INTO jobs (id, owner, request_id, state, stopped_by, job, crc32, ${PLACE_NAMES})
  VALUES (?, ?, ?, ?, ?, ?, ?${", ?".repeat(PLACE_NAMES.split(",").length)})`;
const UPDATE = `UPDATE jobs SET state = ?, job = ?, crc32 = ?, ${PLACE_NAMES.replaceAll(/\w+/g, "$& = ?")} WHERE id = ?`;

/** Returns a function that inserts the rows of a job, and returns its `seq`. */
function insertionInto(database: DatabaseSync): (entry: Unnumbered) => number {
  const insert = database.prepare(INSERT);
  const label = database.prepare("INSERT INTO labels VALUES (?, ?)");
  return ({ job, requestId = null, stoppedBy = null }) => {
    const text = encode(job);
    const values = [job.id, job.owner, requestId, job.state, stoppedBy, text, crc32(text), ...placeValues(job)];
    const seq = Number(insert.run(...values).lastInsertRowid);
    for (const each of labelTexts(job)) label.run(each, seq);
    return seq;
  };
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

/**
 * Makes a journal at `path` that holds `jobs` alone, in this order, and the files of `removed` to remove yet. It is on the disk
 * when this returns.
 */
export function makeJournal(
  path: string,
  instance: string,
  { jobs, removed }: { readonly jobs: Iterable<Unnumbered>; readonly removed: readonly Removed[] },
): void {
  makePrivate(path);
  using database = new DatabaseSync(path);
  database.exec("PRAGMA synchronous = FULL");
  migrate(database, 0, MIGRATIONS);
  database.exec("BEGIN");
  // Marked as open, so that the next daemon looks at all directories.
  database.prepare("INSERT INTO meta VALUES ('instance', ?), ('open', '1')").run(instance);
  const insert = insertionInto(database);
  for (const each of jobs) insert(each);
  const remove = database.prepare("INSERT INTO removals VALUES (?, ?)");
  for (const each of removed) remove.run(each.id, archivedValue(each));
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
  const secret = secretIn(meta);
  let marked = markOpen(database, meta, boot);
  return {
    instance,
    boot,
    secret,
    interrupted,
    clean,
    settled: meta.get("settled"),
    settle: (id) => toldOrFailing(() => settle(database, meta, id)),
    logs: eachIn(logRecords(database), toldOrFailing),
    removals: eachIn(removalsIn(database, COLUMNS, `${path}-wal`), toldOrFailing),
    groupsIn: (group) => toldOrFailing(() => groupsIn(meta, group)),
    ...eachIn(
      writesOf(database, () => (marked ||= markOpen(database, meta, boot))),
      toldOrFailing,
    ),
    ...eachIn({ ...lookupsIn(database), list: searchIn(database, COLUMNS) }, told),
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

function secretIn(meta: Meta): Buffer {
  const kept = meta.get("secret");
  if (kept !== undefined && /^[0-9a-f]{32}$/.test(kept)) return Buffer.from(kept, "hex");
  const secret = randomBytes(16);
  try {
    meta.set("secret", secret.toString("hex"));
  } catch (error) {
    // Without room, page tokens are those of this daemon.
    if (!isFailing(error)) throw error;
  }
  return secret;
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

function settle(database: DatabaseSync, meta: Meta, id: string): void {
  // What of this is in the -wal alone is lost with what comes behind it there.
  const { log, checkpointed } = database.prepare("PRAGMA wal_checkpoint(PASSIVE)").get() ?? {};
  if (log === checkpointed) meta.set("settled", id);
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
  const insert = insertionInto(database);
  const update = database.prepare(UPDATE);
  const stopping = database.prepare("UPDATE jobs SET stopped_by = coalesce(stopped_by, ?) WHERE id = ?");
  const find = database.prepare(`${COLUMNS} WHERE id = ?`);
  find.setReadBigInts(true);
  const removal = removalFrom(database);
  return {
    insert(job, requestId) {
      mark();
      const write = (): number => insert({ job, requestId: requestId ?? null });
      return job.labels.size === 0 ? write() : atomically(database, write);
    },
    update(job) {
      const text = encode(job);
      update.run(job.state, text, crc32(text), ...placeValues(job), job.id);
    },
    stopping: (id, by) => void stopping.run(by, id),
    remove(id) {
      const kept = keptIn(find.get(id));
      if (kept) atomically(database, () => removal(kept));
    },
  };
}

function lookupsIn(
  database: DatabaseSync,
): Pick<Journal, "alive" | "find" | "findRequest" | "knows" | "lastUid" | "newest" | "ownerOf"> {
  const newest = database.prepare("SELECT id FROM jobs ORDER BY seq DESC LIMIT 1");
  const recent = database.prepare("SELECT job FROM jobs ORDER BY seq DESC LIMIT 1000");
  const knows = database.prepare(
    "SELECT EXISTS (SELECT 1 FROM jobs WHERE id = ?1) OR EXISTS (SELECT 1 FROM removals WHERE id = ?1) AS known",
  );
  const find = database.prepare(`${COLUMNS} WHERE id = ?`);
  const owner = database.prepare("SELECT owner FROM jobs WHERE id = ?");
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
    knows: (id) => knows.get(id)?.["known"] === 1,
    find: (id) => keptIn(find.get(id)),
    ownerOf: (id) => owner.get(id)?.["owner"]?.toString(),
    findRequest: (owner, requestId) => keptIn(findRequest.get(owner, requestId)),
    alive: () => alive.all().map((row) => keptIn(row)),
  };
}
