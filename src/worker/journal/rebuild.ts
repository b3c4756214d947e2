import {
  closeSync,
  constants,
  copyFileSync,
  existsSync,
  fsyncSync,
  linkSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
} from "node:fs";
import { join, resolve } from "node:path";
import { codeOf } from "../../os/errno.ts";
import { logIn } from "../log/files.ts";
import { JobError } from "../model/errors.ts";
import { text } from "../model/shape.ts";
import type { Job } from "../model/job.ts";
import { isSupervised } from "../supervisor/control.ts";
import { readExit } from "../supervisor/exit.ts";
import { databasePath, inaccessible, look, unusable } from "./database.ts";
import { checkOwn } from "./state-directory.ts";
import { readJob } from "./job-file.ts";
import { makeJournal } from "./journal.ts";
import type { JobRecord } from "./record.ts";
import { lockDirectory } from "./lock.ts";
import { salvage, type Salvaged } from "./salvage.ts";

/** The outcome of a recovery. */
export interface Recovered {
  /** The journal that there was; absent when there was none. */
  readonly aside?: string;
  readonly instance: string;
  /** All jobs in the new journal, which are: */
  readonly jobs: number;
  readonly ended: number;
  /** those that run: the next daemon takes them up, */
  readonly running: number;
  /** those that neither run nor have a record of their end: the next daemon tells what became of them, */
  readonly lost: number;
  /** those that only the journal that there was told of, */
  readonly salvaged: number;
  /** and those of which nothing but output and end is known. */
  readonly nameless: readonly string[];
  /** Directories that tell of no start: the next daemon removes them. */
  readonly unstarted: readonly string[];
  /** Directories that cannot be read, of jobs that the journal that there was did not tell of; they are left. */
  readonly unreadable: readonly string[];
  /** Rows of the journal that there was that could not be read; their jobs may be told by directories. */
  readonly unread: number;
}

type Entry = Omit<JobRecord, "seq">;

/** The directory in which the new journal is made. */
const WORK = ".recover";

/**
 * Makes the journal of a state directory anew, of what can be read of the one that there is and of the jobs' directories,
 * and keeps the old one beside it. Killed at any moment it leaves the old one or the new one. Throws JobError `unavailable`
 * while a daemon has the directory, or where other users could change it.
 */
export function recoverJournal(stateDirectory: string, now = new Date()): Recovered {
  text("stateDir", stateDirectory);
  const stateDir = resolve(stateDirectory);
  const jobsDir = join(stateDir, "jobs");
  if (!existsSync(jobsDir))
    throw new JobError("unavailable", `${stateDir} is no state directory: there is no ${jobsDir}`);
  checkOwn(stateDir);
  using _lock = lockDirectory(stateDir);
  const path = databasePath(stateDir);
  checkUnused(path);
  const work = join(stateDir, WORK);
  rmSync(work, { recursive: true, force: true });
  mkdirSync(work, { mode: 0o700 });
  try {
    const twin = twinOf(stateDir, path);
    const old = salvage(copyOf(path, walOf(path, twin), work));
    const { entries, ...figures } = merge(jobsDir, old);
    const instance = old.instance ?? figures.instance ?? crypto.randomUUID().slice(0, 8);
    const fresh = join(work, "journal.db");
    makeJournal(fresh, instance, { jobs: entries, removed: old.removed });
    const aside = putAside(path, twin ?? `${path}.damaged-${now.toISOString().replaceAll(/[-:]|\.\d+/g, "")}`);
    // The old -wal is gone for good before the new journal has its name: it would damage that.
    sync(stateDir);
    renameSync(fresh, path);
    sync(stateDir);
    return { ...figures, instance, unread: old.unread, ...(aside !== undefined && { aside }) };
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/** A daemon of before there was a lock beside the journal holds the journal itself. */
function checkUnused(path: string): void {
  try {
    if (statSync(path, { throwIfNoEntry: false })?.isFile())
      look(path, (database) => database.prepare("SELECT count(*) FROM sqlite_master").get());
  } catch (error) {
    const told = unusable(path, error);
    if (told.facts["reason"] === "locked") throw told;
  }
}

/** Returns the second name that a killed recovery gave to the journal; undefined when there is none. */
function twinOf(stateDir: string, path: string): string | undefined {
  const inode = statSync(path, { throwIfNoEntry: false })?.ino;
  return readdirSync(stateDir)
    .filter((name) => name.startsWith("journal.db.damaged-") && !/-(wal|shm)$/.test(name))
    .map((name) => join(stateDir, name))
    .find((name) => statSync(name).ino === inode);
}

/**
 * The journal's own, which a recovery that was killed may have put aside with its twin; but one that a daemon has begun
 * anew since is in the journal already, and its pages are older.
 */
function walOf(path: string, twin: string | undefined): string {
  const own = `${path}-wal`;
  const aside = `${twin}-wal`;
  if (twin === undefined || existsSync(own) || !existsSync(aside)) return own;
  return statSync(aside).mtimeMs < statSync(path).mtimeMs ? own : aside;
}

/** Copies the journal, because reading a database may write to it or to its -wal. */
function copyOf(path: string, wal: string, work: string): string {
  const copy = join(work, "old.db");
  for (const [from, to] of [
    [path, copy],
    [wal, `${copy}-wal`],
  ] as const) {
    try {
      copyFileSync(from, to, constants.COPYFILE_FICLONE);
    } catch (error) {
      // Nothing can be salvaged of a file that the disk does not give back.
      if (codeOf(error) === "EACCES") throw inaccessible(path, error);
    }
  }
  return copy;
}

/** The journal by its new name too, so that it never has none; its -wal goes first, because another's would be its ruin. */
function putAside(path: string, aside: string): string | undefined {
  const found = statSync(path, { throwIfNoEntry: false });
  if (found?.isDirectory()) renameSync(path, aside);
  else if (found && !existsSync(aside)) linkSync(path, aside);
  if (existsSync(`${path}-wal`)) renameSync(`${path}-wal`, `${aside}-wal`);
  rmSync(`${path}-shm`, { force: true });
  return found && aside;
}

/** Merges what the old journal and the directories tell, in the order of the jobs' starts. */
function merge(
  jobsDir: string,
  { kept, removed }: Pick<Salvaged, "kept" | "removed">,
): Omit<Recovered, "aside" | "instance" | "unread"> & {
  readonly entries: readonly Entry[];
  readonly instance: string | undefined;
} {
  const gone = new Set(removed.map(({ id }) => id));
  const rows = new Map(kept.flatMap((row) => (gone.has(row.job.id) ? [] : [[row.job.id, row] as const])));
  const entries = new Map<string, Entry>(rows);
  const [nameless, unstarted, unreadable]: [string[], string[], string[]] = [[], [], []];
  let [ended, running, salvaged] = [0, 0, rows.size];
  let instance: string | undefined;
  for (const id of readdirSync(jobsDir).filter((name) => !name.startsWith(".") && !gone.has(name))) {
    const row = rows.get(id);
    const told = orError(() => readJob(join(jobsDir, id)));
    if (told instanceof Error) {
      if (!row) unreadable.push(id);
      continue;
    }
    instance ??= told?.instance ?? (told && instanceOfGroup(told.job));
    if (!told && !row) unstarted.push(id);
    // An end is final. Before it, a `job` is never older than its row.
    if (!told || row?.job.state === "ended") continue;
    if (told.instance === undefined && row) continue;
    if (row) salvaged--;
    if (told.instance === undefined) nameless.push(id);
    entries.set(id, { ...row, ...told });
  }
  for (const [id, entry] of entries)
    // The next daemon looks at what is to be done with it.
    if (entry.job.state === "ended" && !entry.job.log)
      entries.set(id, { ...entry, job: { ...entry.job, log: logIn(join(jobsDir, id), true) } });
  const sorted = [...entries.values()].toSorted((a, b) => (startedIn(a.job.id) < startedIn(b.job.id) ? -1 : 1));
  for (const { job } of sorted) {
    const directory = join(jobsDir, job.id);
    const exit = orError(() => readExit(directory));
    if (job.state === "ended" || exit instanceof Map) ended++;
    else if (isSupervised(directory)) running++;
  }
  return {
    entries: onceEach(sorted),
    instance,
    jobs: sorted.length,
    ended,
    running,
    lost: sorted.length - ended - running,
    salvaged,
    nameless,
    unstarted,
    unreadable,
  };
}

/** Returns the error instead of throwing it: one damaged directory keeps no other from being told. */
function orError<T>(read: () => T): T | Error {
  try {
    return read();
  } catch (error) {
    return error instanceof Error ? error : new Error(String(error));
  }
}

/** A worker's name may have changed since; the time is in the rest of an id. */
function startedIn(id: string): string {
  return id.slice(id.lastIndexOf(".") + 1);
}

/** Removes request ids that two jobs of one owner have: the later job loses its own. */
function onceEach(entries: readonly Entry[]): Entry[] {
  const seen = new Set<string>();
  return entries.map(({ requestId, ...rest }) => {
    const key = JSON.stringify([rest.job.owner, requestId]);
    if (requestId === undefined || seen.has(key)) return rest;
    seen.add(key);
    return { ...rest, requestId };
  });
}

/** Returns the instance that the cgroup of a running job names. */
function instanceOfGroup({ id, pid }: Job): string | undefined {
  try {
    const [, instance, job] =
      /\/jobs-([0-9a-f]{8})\/(?:@[^/\n]+\/)?([^/\n]+)/.exec(readFileSync(`/proc/${pid}/cgroup`, "utf8")) ?? [];
    return job === id ? instance : undefined;
  } catch {
    return undefined;
  }
}

function sync(directory: string): void {
  const fd = openSync(directory, "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}
