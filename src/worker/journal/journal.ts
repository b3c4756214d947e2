import { existsSync } from "node:fs";
import { DatabaseSync, type SQLOutputValue } from "node:sqlite";
import { reasonOf } from "../../os/errno.ts";
import { isFailing } from "../model/failure.ts";
import { timeOf } from "../model/id.ts";
import { date, jobIn } from "../model/job-check.ts";
import type { Job } from "../model/job.ts";
import { makePrivate } from "../system/file.ts";
import { type Boot, interruption, thisBoot } from "../system/process.ts";
import { APPLICATION_ID, databasePath, openDatabase, unusable } from "./database.ts";
import {
  LOG_COLUMNS,
  LOG_NAMES,
  LOG_SCHEMA,
  LOG_VALUES,
  logIfTold,
  logOf,
  logRecords,
  type LogRecords,
  logValues,
} from "./log-records.ts";

/** What makes a database of each version from one of the version before. What has been released does not change. */
export const MIGRATIONS: readonly string[] = [
  `
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
`,
  LOG_SCHEMA,
];
export const VERSION = MIGRATIONS.length;

/** A job as it is kept: all of it but what only a running one has. One whose `job` is `damaged` is as its columns tell. */
export interface JobRecord {
  readonly seq: number;
  readonly job: Job;
  readonly stoppedBy?: string;
  readonly requestId?: string;
}

/** What SQLite looks for, so that other rows are not decoded. */
export interface Only {
  /** Those that have not ended. */
  readonly alive?: boolean;
  readonly label?: readonly [string, string] | undefined;
}

/**
 * The record of all jobs, in SQLite. Held by one process at a time. Every method throws JobError `unavailable` when what it
 * needs is damaged. A row of which only the content is damaged is one job that says so, and fails nothing.
 */
export interface Journal extends Disposable {
  /** Of the state directory, for good: names this worker's cgroup. */
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
  /** Of all jobs. */
  ids(): Set<string>;
  /** Those that have not ended, as far as is known. */
  alive(): JobRecord[];
  /** Those that `keep` wants, newest first, below `before`: `limit` at most, and what is found until `untilMs` of performance.now(). */
  list(keep: (job: Job) => boolean, before: number, limit: number, only?: Only, untilMs?: number): Found;
}

/** `next`: where to go on, `before` what was seen; absent when all was. */
export interface Found {
  readonly records: readonly JobRecord[];
  readonly next?: number;
}

/** A job's JSON; where its log is changes later, and is in columns. */
export function encode({ log: _inColumns, ...job }: Job): string {
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
  return key === "createdAt" || key === "startedAt" || key === "endedAt" || key === "at";
}

export function decode(text: string): unknown {
  return revived("", JSON.parse(text));
}

/** Without JSON.parse's reviver, which is called for each of a hundred thousand arguments. */
function revived(key: string, value: unknown): unknown {
  if (typeof value === "string") return isDate(key) ? new Date(value) : value;
  if (typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) return typeof value[0] === "string" ? value : value.map((each) => revived("", each));
  if ("$bigint" in value) return BigInt(String(value.$bigint));
  if ("$map" in value && Array.isArray(value.$map)) return new Map(value.$map);
  return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, revived(name, each)]));
}

type Row = Readonly<{ [column: string]: SQLOutputValue }>;

/** The job of a row. Throws SyntaxError where the row is not what a worker writes. */
function jobOf(row: Row): Job {
  const job = jobIn(decode(String(row["job"])));
  if (job.id !== row["id"]) throw new SyntaxError("it is another job's");
  if ((job.state === "ended") !== (row["state"] === "ended")) throw new SyntaxError("its state is not its column's");
  const log = logOf(row);
  return log ? { ...job, log } : job;
}

function orDamaged(row: Row): Job {
  try {
    return jobOf(row);
  } catch (error) {
    return damagedJob(row, reasonOf(error));
  }
}

/** A job without its record: each field that nobody knows, for those who know the others. */
export const UNKNOWN = {
  command: "(unknown)",
  args: [],
  envNames: [],
  cwd: "/",
  user: "",
  group: "",
  labels: new Map<string, string>(),
  limits: new Map<string, string>(),
  owner: "",
  pid: 0,
  output: { size: 0, first: 0, dropped: 0 },
} as const;

/** What can be told of a job whose row is damaged: it counts as ended, because nobody knows how it is. */
function damagedJob(row: Row, why: string): Job {
  const id = String(row["id"]);
  const log = logIfTold(row);
  const at = [Number(row["ended_at"] ?? timeOf(id) ?? 0), timeOf(id) ?? 0].map((ms) => new Date(ms));
  const [endedAt, createdAt] = at.map((each) => (date(each) ? each : new Date(0)));
  const damaged = `its record in the journal is damaged (row ${String(row["seq"])}: ${why})`;
  return {
    ...UNKNOWN,
    id,
    state: "ended",
    owner: String(row["owner"]),
    createdAt: createdAt ?? new Date(0),
    endedAt: endedAt ?? new Date(0),
    ended: { how: { kind: "lost", reason: damaged }, exitCode: -1, signal: 0, killed: 0 },
    ...(log && { log }), // its output may be read yet
    warnings: [`${damaged}: jobsd --recover looks for it in its directory`],
    damaged,
  };
}

export function record(row: Row | undefined): JobRecord | undefined {
  if (row === undefined) return undefined;
  const { seq, stopped_by: stoppedBy, request_id: requestId } = row;
  return {
    seq: Number(seq),
    job: orDamaged(row),
    ...(typeof stoppedBy === "string" && { stoppedBy }),
    ...(typeof requestId === "string" && { requestId }),
  };
}

const COLUMNS = `SELECT seq, id, owner, state, job, stopped_by, request_id, ended_at, ${LOG_COLUMNS} FROM jobs`;
const INSERT = `INSERT INTO jobs (id, owner, request_id, state, stopped_by, job, ${LOG_NAMES})
  VALUES (?, ?, ?, ?, ?, ?${", ?".repeat(LOG_NAMES.split(",").length)})`;
const ALIVE = `${COLUMNS} WHERE state <> 'ended'`;
const ALIVE_AT_ONCE = 512;

/** Opens or makes `journal.db` in `stateDir`. Throws JobError `unavailable`, which says what is wrong; nothing has been changed then. */
export function openJournal(stateDir: string): Journal {
  const path = databasePath(stateDir);
  // What a start reads first is read before anything is written.
  const { database, written } = openDatabase(path, VERSION, (seen) => {
    seen.prepare("SELECT * FROM meta").all();
    const alive = seen.prepare("SELECT * FROM jobs WHERE state <> 'ended'");
    alive.setReadBigInts(true);
    alive.all();
  });
  try {
    for (const [before, text] of MIGRATIONS.entries())
      if (written <= before) database.exec(`BEGIN; ${text} PRAGMA user_version = ${before + 1}; COMMIT;`);
    return journalIn(database, path);
  } catch (error) {
    database.close();
    throw unusable(path, error);
  }
}

/** A journal at `path` that holds `jobs` alone, in this order; on the disk when this returns. */
export function makeJournal(path: string, instance: string, jobs: Iterable<Omit<JobRecord, "seq">>): void {
  makePrivate(path);
  using database = new DatabaseSync(path);
  database.exec(`PRAGMA synchronous = FULL; BEGIN; ${MIGRATIONS.join("")} PRAGMA user_version = ${VERSION};`);
  // Open as it were: the next daemon looks at all directories.
  database.prepare("INSERT INTO meta VALUES ('instance', ?), ('open', '1')").run(instance);
  const insert = database.prepare(INSERT);
  for (const { job, requestId = null, stoppedBy = null } of jobs)
    insert.run(job.id, job.owner, requestId, job.state, stoppedBy, encode(job), ...logValues(job));
  database.exec("COMMIT");
}

/** The same functions, each called by `call`. */
function eachIn<T extends object>(functions: T, call: <R>(run: () => R) => R): T {
  const entries = Object.entries(functions).map(([name, run]: [string, (...args: unknown[]) => unknown]) => [
    name,
    (...args: unknown[]) => call(() => run(...args)),
  ]);
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- nothing but what calls them has changed
  return Object.fromEntries(entries) as T;
}

function pathsIn(text: string): string[] {
  const found: unknown = JSON.parse(text);
  if (Array.isArray(found) && found.every((each): each is string => typeof each === "string")) return found;
  throw new SyntaxError("where jobs' groups were is damaged");
}

function journalIn(database: DatabaseSync, path: string): Journal {
  const getMeta = database.prepare("SELECT value FROM meta WHERE key = ?");
  const setMeta = database.prepare("INSERT OR REPLACE INTO meta VALUES (?, ?)");
  const meta = (key: string): string | undefined => getMeta.get(key)?.["value"]?.toString();
  const boot = thisBoot();
  const lastHost = meta("boot_id");
  const interrupted =
    lastHost === undefined ? undefined : interruption({ host: lastHost, init: meta("init") ?? boot.init }, boot);
  const clean = meta("open") === undefined;
  if (meta("instance") === undefined) setMeta.run("instance", crypto.randomUUID().slice(0, 8));

  /** That it is in use, and since which boot. False where there is no room for that: a full disk is no reason not to start. */
  function mark(): boolean {
    try {
      database.exec("BEGIN");
      setMeta.run("boot_id", boot.host);
      setMeta.run("init", boot.init);
      setMeta.run("open", "1");
      // In the database itself: a -wal that is removed takes only jobs with it, and it shows.
      database.exec(`PRAGMA application_id = ${APPLICATION_ID}; COMMIT; PRAGMA wal_checkpoint(TRUNCATE)`);
      return true;
    } catch (error) {
      if (database.isTransaction) database.exec("ROLLBACK");
      if (isFailing(error)) return false;
      throw error;
    }
  }

  let marked = mark();

  const insert = database.prepare(INSERT);
  const update = database.prepare(`UPDATE jobs SET state = ?, job = ?, ${LOG_VALUES} WHERE id = ?`);
  const stopping = database.prepare("UPDATE jobs SET stopped_by = coalesce(stopped_by, ?) WHERE id = ?");
  const remove = database.prepare("DELETE FROM jobs WHERE id = ?");
  const newest = database.prepare("SELECT id FROM jobs ORDER BY seq DESC LIMIT 1");
  const recent = database.prepare("SELECT job FROM jobs ORDER BY seq DESC LIMIT 1000");
  const ids = database.prepare("SELECT group_concat(id, ' ') AS ids FROM jobs");
  const find = database.prepare(`${COLUMNS} WHERE id = ?`);
  const findRequest = database.prepare(`${COLUMNS} WHERE owner = ? AND request_id = ?`);
  const alive = database.prepare(ALIVE);
  const bySeq = database.prepare(`${COLUMNS} WHERE seq = ?`);
  const aliveBefore = database.prepare(
    `SELECT seq, 1 AS hit FROM jobs INDEXED BY jobs_alive WHERE state <> 'ended' AND seq < ? ORDER BY seq DESC LIMIT ${ALIVE_AT_ONCE}`,
  );
  // instr() finds an empty text everywhere.
  const allBefore = database.prepare(
    "SELECT seq, instr(job, ?2) > 0 AS hit FROM jobs WHERE seq < ?1 ORDER BY seq DESC",
  );

  function* candidates(before: number, { alive: aliveOnly, label }: Only): Iterable<{ seq: number; hit: boolean }> {
    const text = label ? JSON.stringify(label) : "";
    for (let from = before; ;) {
      // A statement that is not read to its end holds nothing: what follows it is another one.
      const rows = aliveOnly ? aliveBefore.all(from) : allBefore.iterate(from, text);
      let count = 0;
      for (const row of rows) {
        count++;
        from = Number(row["seq"]);
        yield { seq: from, hit: Number(row["hit"]) === 1 };
      }
      if (!aliveOnly || count < ALIVE_AT_ONCE) return;
    }
  }

  for (const each of [find, findRequest, alive, bySeq, aliveBefore, allBefore]) each.setReadBigInts(true);
  const reading = <T>(call: () => T): T => {
    try {
      return call();
    } catch (error) {
      throw unusable(path, error);
    }
  };
  const whole = <T>(call: () => T): T => {
    try {
      return call();
    } catch (error) {
      // A disk that is full, or fails, is another matter than damage.
      throw isFailing(error) ? error : unusable(path, error);
    }
  };

  return {
    instance: meta("instance") ?? "",
    boot,
    interrupted,
    clean,
    logs: eachIn(logRecords(database), whole),
    groupsIn(path) {
      const text = whole(() => meta("groups")) ?? "[]";
      const former = whole(() => pathsIn(text)).filter((each) => each !== path && existsSync(each));
      const groups = path === undefined ? former : [path, ...former];
      const now = JSON.stringify(groups);
      try {
        if (now !== text) setMeta.run("groups", now);
      } catch (error) {
        if (!isFailing(error)) throw error;
      }
      return groups;
    },
    insert: (job, requestId) =>
      whole(() => {
        marked ||= mark();
        const values = [job.id, job.owner, requestId ?? null, job.state, null, encode(job), ...logValues(job)];
        return Number(insert.run(...values).lastInsertRowid);
      }),
    update: (job) => void whole(() => update.run(job.state, encode(job), ...logValues(job), job.id)),
    stopping: (id, by) => void whole(() => stopping.run(by, id)),
    remove: (id) => void whole(() => remove.run(id)),
    newest: () => reading(() => newest.get()?.["id"]?.toString()),
    lastUid: ({ first, last }) =>
      reading(() => {
        for (const { job } of recent.iterate()) {
          // Not decoded: a quotation mark within a text has a backslash before it.
          const uid = Number(/"user":"(\d+)"/.exec(String(job))?.[1]);
          if (uid >= first && uid <= last) return uid;
        }
        return undefined;
      }),
    ids: () => new Set(reading(() => String(ids.get()?.["ids"] ?? "").split(" "))),
    find: (id) => reading(() => record(find.get(id))),
    findRequest: (owner, requestId) => reading(() => record(findRequest.get(owner, requestId))),
    alive: () => reading(() => alive.all().flatMap((row) => record(row) ?? [])),
    list: (keep, before, limit, only = {}, untilMs = Infinity) =>
      reading(() => {
        const records: JobRecord[] = [];
        let next = before;
        for (const { seq, hit } of candidates(before, only)) {
          // One at the least, so that whoever goes on gets on.
          if (records.length === limit || (next !== before && performance.now() > untilMs)) return { records, next };
          next = seq;
          const kept = hit ? record(bySeq.get(seq)) : undefined;
          if (kept && keep(kept.job)) records.push(kept);
        }
        return { records };
      }),
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
