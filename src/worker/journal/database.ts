import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  opendirSync,
  openSync,
  readSync,
  rmSync,
  statSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { pathToFileURL } from "node:url";
import { codeOf, reasonOf } from "../../os/errno.ts";
import { JobError } from "../model/errors.ts";
import { isFailing } from "../model/failure.ts";
import { makePrivate } from "../system/file.ts";
import { lockedBy } from "./lock.ts";

/* What the journal is kept in: docs/decisions/0010-a-journal-is-looked-at-before-it-is-opened.md. */

const MAGIC = "SQLite format 3\0";
const HEADER_BYTES = 100;
/** "jobs": what file(1) and others know our databases by (sqlite.org/fileformat2.html, "Application ID"). */
const APPLICATION_ID = 0x6a6f6273;
/** Journals of this version were made before a journal noted its version in the table `meta`, too. */
const UNNOTED = 1;
/** Above it a whole check takes longer than a start may wait for it. */
const MOST_CHECKED_BYTES = 64 * 1024 * 1024;

export function databasePath(stateDir: string): string {
  return join(stateDir, "journal.db");
}

/** Returns whether any job has a directory. */
function hasJobs(jobsDir: string): boolean {
  if (!existsSync(jobsDir)) return false;
  using directory = opendirSync(jobsDir);
  for (let entry; (entry = directory.readSync());) if (!entry.name.startsWith(".")) return true;
  return false;
}

function sizeOf(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.size ?? 0;
}

/** Makes an error of one line that says what is wrong, that nothing was touched, and what to do. */
function damaged(path: string, what: string, cause?: unknown): JobError {
  return new JobError(
    "unavailable",
    `the journal ${path} ${what}; it was left as it is: jobsd --recover --state ${dirname(path)} rebuilds it from the jobs' directories`,
    { reason: "journal-unavailable", facts: { reason: "damaged" }, ...(cause !== undefined && { cause }) },
  );
}

function foreign(path: string, what: string): JobError {
  return new JobError(
    "unavailable",
    `${path} ${what}, and is no journal of jobs; it was left as it is: give another --state, or jobsd --recover --state ${dirname(path)} puts it aside`,
    { facts: { reason: "foreign" } },
  );
}

export function inaccessible(path: string, error: unknown): JobError {
  const why = {
    EACCES: `may not be read and written by uid ${process.getuid?.()}: chown it, or run jobsd as its owner`,
    EROFS: "is on a file system that is mounted read-only: mount it read-write, or give another --state",
    EISDIR: "is a directory: move it away",
  };
  const code = codeOf(error);
  const told = Object.entries(why).find(([known]) => known === code)?.[1] ?? `cannot be opened (${code})`;
  return new JobError("unavailable", `the journal ${path} ${told}`, { facts: { errno: code }, cause: error });
}

/** Matches what SQLite says of a damaged database: also that a row is missing in an index, or is there twice. */
const DAMAGE = /malformed|not a database|corrupt|no such (table|column|index)|constraint failed|datatype mismatch/i;

/** Makes a JobError of what SQLite threw, which says what can be done. */
export function unusable(path: string, error: unknown): JobError {
  if (error instanceof JobError) return error;
  const message = reasonOf(error);
  if (/locked|busy/.test(message)) return lockedBy(path, error);
  if (error instanceof SyntaxError || DAMAGE.test(message)) return damaged(path, `is damaged (${message})`, error);
  return new JobError("unavailable", `the journal cannot be used: ${path}: ${message}`, {
    reason: "journal-unavailable",
    cause: error,
  });
}

/** Throws JobError when the file is none that SQLite could open; reads the first bytes alone. */
function checkFile(path: string, jobs: boolean): "new" | "there" {
  try {
    const found = statSync(path, { throwIfNoEntry: false });
    accessSync(dirname(path), constants.W_OK);
    if (!found) {
      if (jobs) throw damaged(path, "is missing, though there are jobs");
      return "new";
    }
    if (found.isDirectory()) throw Object.assign(new Error("a directory"), { code: "EISDIR" });
    accessSync(path, constants.R_OK | constants.W_OK);
    if (found.size === 0 && sizeOf(`${path}-wal`) === 0) {
      if (jobs) throw damaged(path, "is empty, though there are jobs");
      return "new";
    }
    const header = Buffer.alloc(HEADER_BYTES);
    const fd = openSync(path, "r");
    try {
      readSync(fd, header, 0, HEADER_BYTES, 0);
    } finally {
      closeSync(fd);
    }
    if (header.toString("latin1", 0, MAGIC.length) !== MAGIC) {
      if (found.size > 0 && !/^[\t\n\r -~]+$/.test(header.subarray(0, found.size).toString("latin1")))
        throw damaged(path, "is not a database: its first bytes are not SQLite's");
      throw found.size === 0 ? damaged(path, "is empty") : foreign(path, "is not a database, but text");
    }
    return "there";
  } catch (error) {
    throw error instanceof JobError ? error : inaccessible(path, error);
  }
}

/**
 * Looks at a database by way of a connection that cannot write: opening one for writing, and closing it, would move what
 * its -wal holds into it.
 */
export function look(path: string, see: (database: DatabaseSync) => void): void {
  const url = pathToFileURL(path);
  const aside = ["-wal", "-shm"].map((suffix) => `${path}${suffix}`).filter((file) => !existsSync(file));
  // When there is no -wal, "immutable" keeps SQLite from making one.
  if (sizeOf(`${path}-wal`) === 0) url.search = "?immutable=1";
  try {
    using database = new DatabaseSync(url, { readOnly: true });
    see(database);
  } finally {
    for (const file of aside) rmSync(file, { force: true });
  }
}

/** SQLITE_IOERR_READ and _CORRUPTFS, as which it tells EIO; sqlite.org/rescode.html. */
const UNREAD = new Set<unknown>([266, 8458]);

/** False where there is no room to look: that takes a -shm beside a -wal, and a full disk is no reason not to start. */
function lookedAt(path: string, see: (database: DatabaseSync) => void): boolean {
  try {
    look(path, see);
    return true;
  } catch (error) {
    if (error instanceof Error && "errcode" in error && UNREAD.has(error.errcode))
      throw damaged(path, "cannot be read from its disk", error);
    if (isFailing(error)) return false;
    throw error;
  }
}

function number(database: DatabaseSync, pragma: string): number {
  return Number(database.prepare(`PRAGMA ${pragma}`).get()?.[pragma]);
}

/**
 * Returns the version that is noted in the table `meta`, as text; undefined when there is none. It tells a journal whose
 * header is damaged from one of a newer version, and from another program's database.
 */
function notedVersion(database: DatabaseSync): string | undefined {
  try {
    return database.prepare("SELECT value FROM meta WHERE key = 'version'").get()?.["value"]?.toString();
  } catch (error) {
    if (/no such (table|column)/.test(reasonOf(error))) return undefined;
    throw error;
  }
}

function checkContent(
  path: string,
  database: DatabaseSync,
  version: number,
  see: (database: DatabaseSync) => void,
): void {
  const written = number(database, "user_version");
  const application = number(database, "application_id");
  const noted =
    notedVersion(database) ?? (application === APPLICATION_ID && written === UNNOTED ? String(UNNOTED) : undefined);
  if (noted === undefined) {
    const tables = database
      .prepare("SELECT name FROM sqlite_master WHERE type = 'table'")
      .all()
      .map((row) => row["name"]);
    if (written === 0 && application === 0 && tables.length === 0) return;
    throw foreign(path, `is another program's database (tables: ${tables.slice(0, 5).join(", ") || "none"})`);
  }
  if (application !== APPLICATION_ID) throw damaged(path, `is damaged (malformed: application id ${application})`);
  if (noted !== String(written))
    throw damaged(path, `is damaged (malformed: of version ${written} by its header, ${noted} by its table)`);
  if (written > version)
    throw new JobError(
      "unavailable",
      `${path} is of a newer version of jobs (${written}; this one writes ${version}); it was left as it is: run that version`,
      { facts: { reason: "newer" } },
    );
  const size = sizeOf(path) + sizeOf(`${path}-wal`);
  // A -wal is left by a daemon that was killed; it may be another's, or damaged.
  if (sizeOf(`${path}-wal`) > 0 && size <= MOST_CHECKED_BYTES) {
    const found = database.prepare("PRAGMA quick_check(1)").get()?.["quick_check"];
    if (found !== "ok") throw damaged(path, `is damaged (malformed: ${String(found).replaceAll("\n", " ")})`);
  }
  see(database);
}

/** Makes one step whole, or none of it. The version is in the header, where SQLite has it, and in the table `meta`. */
function step(database: DatabaseSync, text: string, version: number): void {
  try {
    database.exec(`
      BEGIN;
      ${text}
      INSERT OR REPLACE INTO meta VALUES ('version', '${version}');
      PRAGMA application_id = ${APPLICATION_ID};
      PRAGMA user_version = ${version};
      COMMIT;
    `);
  } catch (error) {
    if (database.isTransaction) database.exec("ROLLBACK");
    throw error;
  }
}

/** Brings a database that is of version `written` to the newest, which is that of the last migration, one step at a time. */
export function migrate(database: DatabaseSync, written: number, migrations: readonly string[]): void {
  for (const [before, text] of migrations.entries()) if (written <= before) step(database, text, before + 1);
}

/**
 * Opens or makes the database in `stateDir`, whose user_version is not to be above `version`. `see` is shown it before
 * anything is written; when that throws, or anything else is wrong, nothing has been changed. Throws JobError `unavailable`.
 */
export function openDatabase(
  path: string,
  version: number,
  see: (database: DatabaseSync) => void,
): { readonly database: DatabaseSync; readonly written: number } {
  let database: DatabaseSync | undefined;
  try {
    const there = checkFile(path, hasJobs(join(dirname(path), "jobs"))) === "there";
    const looked = there && lookedAt(path, (seen) => checkContent(path, seen, version, see));
    if (!there) makePrivate(path);
    database = new DatabaseSync(path);
    // WAL needs no shared memory while one process has it alone.
    database.exec(
      "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA journal_size_limit = 8388608; BEGIN EXCLUSIVE; COMMIT;",
    );
    if (there && !looked) checkContent(path, database, version, see);
    return { database, written: number(database, "user_version") };
  } catch (error) {
    database?.close();
    throw unusable(path, error);
  }
}
