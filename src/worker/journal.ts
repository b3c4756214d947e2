import { readFileSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync, type SQLOutputValue } from "node:sqlite";
import { JobError } from "./errors.ts";
import type { Job } from "./job.ts";

const VERSION = 1;

const SCHEMA = `
  CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
  CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    request_id TEXT,
    state TEXT NOT NULL,
    stopped_by TEXT,
    job TEXT NOT NULL
  );
  CREATE UNIQUE INDEX jobs_request ON jobs (owner, request_id) WHERE request_id IS NOT NULL;
  CREATE INDEX jobs_alive ON jobs (state) WHERE state <> 'ended';
`;

/** A job as it is kept: all of it but what only a running one has. */
export interface Record {
  readonly seq: number;
  readonly job: Job;
  readonly stoppedBy?: string;
}

/** The record of all jobs, in SQLite. Held by one process at a time. */
export interface Journal extends Disposable {
  /** Of the state directory, for good: names this worker's cgroup. */
  readonly instance: string;
  /** The host has been booted since the journal was last open: nothing that ran then runs now. */
  readonly rebooted: boolean;
  insert(job: Job, requestId: string | undefined): number;
  update(job: Job): void;
  stopping(id: string, by: string): void;
  remove(id: string): void;
  find(id: string): Record | undefined;
  findRequest(owner: string, requestId: string): Record | undefined;
  /** Those that have not ended, as far as is known. Throws JobError `unavailable` when the file is damaged. */
  alive(): Record[];
  /** Those that `keep` wants, newest first, below `before`; `alive` for only those that have not ended. */
  list(keep: (job: Job) => boolean, before: number, limit: number, alive?: boolean): Record[];
}

function encode(job: Job): string {
  const { labels, limits, resources } = job;
  return JSON.stringify({
    ...job,
    labels: { $map: [...labels] },
    limits: { $map: [...limits] },
    // A replacer is slow, and bigints are only here.
    ...(resources && { resources: JSON.parse(JSON.stringify(resources, bigints)) as unknown }),
  });
}

function bigints(_key: string, value: unknown): unknown {
  return typeof value === "bigint" ? { $bigint: String(value) } : value;
}

function isDate(key: string): boolean {
  return key === "createdAt" || key === "startedAt" || key === "endedAt";
}

function decode(text: string): Job {
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- the journal holds what encode() wrote
  return JSON.parse(text, (key, value: unknown) => {
    if (typeof value === "string" && isDate(key)) return new Date(value);
    if (typeof value !== "object" || value === null) return value;
    if ("$bigint" in value) return BigInt(String(value.$bigint));
    return "$map" in value && Array.isArray(value.$map) ? new Map(value.$map) : value;
  }) as Job;
}

function record(row: Readonly<{ [column: string]: SQLOutputValue }> | undefined): Record | undefined {
  if (row === undefined) return undefined;
  const stoppedBy = row["stopped_by"];
  return {
    seq: Number(row["seq"]),
    job: decode(String(row["job"])),
    ...(typeof stoppedBy === "string" && { stoppedBy }),
  };
}

function unusable(path: string, error: unknown): JobError {
  if (error instanceof JobError) return error;
  const message = error instanceof Error ? error.message : String(error);
  return /locked|busy/.test(message)
    ? new JobError("unavailable", `another jobsd uses the state directory (${path} is locked)`, {
        facts: { reason: "locked" },
        cause: error,
      })
    : new JobError("unavailable", `the journal cannot be used: ${path}: ${message}`, { cause: error });
}

function openDatabase(path: string): DatabaseSync {
  let database: DatabaseSync | undefined;
  try {
    database = new DatabaseSync(path);
    // The lock keeps a second daemon out for as long as this process lives, and WAL then needs no shared memory.
    database.exec(
      "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA journal_size_limit = 8388608; BEGIN EXCLUSIVE; COMMIT;",
    );
    const version = Number(database.prepare("PRAGMA user_version").get()?.["user_version"]);
    if (version > VERSION)
      throw new JobError(
        "unavailable",
        `${path} is of a newer version of jobs (${version}; this one writes ${VERSION})`,
      );
    if (version === 0) database.exec(`BEGIN; ${SCHEMA} PRAGMA user_version = ${VERSION}; COMMIT;`);
    return database;
  } catch (error) {
    database?.close();
    throw unusable(path, error);
  }
}

/** Opens or makes `journal.db` in `stateDir`. Throws JobError `unavailable`: locked, unreadable, of a newer version. */
export function openJournal(stateDir: string): Journal {
  const path = join(stateDir, "journal.db");
  const database = openDatabase(path);
  try {
    return journalIn(database, path);
  } catch (error) {
    database.close();
    throw unusable(path, error);
  }
}

function journalIn(database: DatabaseSync, path: string): Journal {
  const getMeta = database.prepare("SELECT value FROM meta WHERE key = ?");
  const setMeta = database.prepare("INSERT OR REPLACE INTO meta VALUES (?, ?)");
  const bootId = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  const lastBootId = getMeta.get("boot_id")?.["value"];
  // Nothing is written where nothing has changed, so that a full disk is no reason not to start.
  if (bootId !== lastBootId) setMeta.run("boot_id", bootId);
  if (!getMeta.get("instance")) setMeta.run("instance", crypto.randomUUID().slice(0, 8));

  const insert = database.prepare("INSERT INTO jobs (id, owner, request_id, state, job) VALUES (?, ?, ?, ?, ?)");
  const update = database.prepare("UPDATE jobs SET state = ?, job = ? WHERE id = ?");
  const stopping = database.prepare("UPDATE jobs SET stopped_by = coalesce(stopped_by, ?) WHERE id = ?");
  const remove = database.prepare("DELETE FROM jobs WHERE id = ?");
  const columns = "SELECT seq, job, stopped_by FROM jobs";
  const find = database.prepare(`${columns} WHERE id = ?`);
  const findRequest = database.prepare(`${columns} WHERE owner = ? AND request_id = ?`);
  const alive = database.prepare(`${columns} WHERE state <> 'ended'`);
  const aliveBefore = database.prepare(`${columns} WHERE state <> 'ended' AND seq < ? ORDER BY seq DESC`);
  const before = database.prepare(`${columns} WHERE seq < ? ORDER BY seq DESC`);

  return {
    instance: String(getMeta.get("instance")?.["value"]),
    rebooted: lastBootId !== undefined && lastBootId !== bootId,
    insert: (job, requestId) =>
      Number(insert.run(job.id, job.owner, requestId ?? null, job.state, encode(job)).lastInsertRowid),
    update: (job) => void update.run(job.state, encode(job), job.id),
    stopping: (id, by) => void stopping.run(by, id),
    remove: (id) => void remove.run(id),
    find: (id) => record(find.get(id)),
    findRequest: (owner, requestId) => record(findRequest.get(owner, requestId)),
    alive() {
      try {
        return alive.all().flatMap((row) => record(row) ?? []);
      } catch (error) {
        throw unusable(path, error);
      }
    },
    list(keep, seq, limit, aliveOnly = false) {
      const found: Record[] = [];
      for (const row of (aliveOnly ? aliveBefore : before).iterate(seq)) {
        const kept = record(row);
        if (kept && keep(kept.job)) found.push(kept);
        if (found.length === limit) break;
      }
      return found;
    },
    [Symbol.dispose]: () => database.close(),
  };
}
