import { renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { codeOf } from "../os/errno.ts";
import type { Job, JobLog } from "./job.ts";
import { date, jobIn } from "./job-check.ts";
import { UNKNOWN, decode, encode, type Journal } from "./journal.ts";
import { birthOf } from "./process.ts";
import { startOf, type Running } from "./running.ts";
import { readExit } from "./exit.ts";
import { readText } from "./file.ts";
import { TURN_MS } from "./turn.ts";

/* `job` in a job's directory: its record once more, from which a journal can be rebuilt. */

/** No record is longer: a start has 8 MiB at the most, of which JSON makes six times as much. */
const MOST_BYTES = 64 * 1024 * 1024;
/** A job that has ended by then is written once. */
const DELAY_MS = 100;

/** A job as its directory tells it. */
export interface Told {
  readonly job: Job;
  readonly stoppedBy?: string;
  readonly requestId?: string;
  /** Of the journal that it was in; absent when there is no `job`. */
  readonly instance?: string;
}

/** Writes the `job`s. */
export interface JobFiles extends Disposable {
  /** Writes it, and has the journal know how the job runs, when nobody waits. */
  later(entry: Running): void;
  /** Writes it now. What cannot be written is logged; the journal has it. */
  write(entry: Running): void;
}

/** Disposing writes what is to be written. */
export function openJobFiles(journal: Journal, log: (message: string, facts: object) => void): JobFiles {
  const waiting = new Set<Running>();
  let timer: NodeJS.Timeout | undefined;

  function write(entry: Running): void {
    waiting.delete(entry);
    try {
      writeJobFile(journal.instance, entry.directory, entry);
    } catch (error) {
      // Without its directory a job is lost, which is told elsewhere.
      if (codeOf(error) !== "ENOENT")
        log("a job's record could not be written beside its output", { job: entry.job.id, error });
    }
  }

  function note(entry: Running): void {
    try {
      const supervisor = startOf(entry)?.supervisor ?? 0;
      const birth = entry.job.birth ?? birthOf(entry.job.pid, supervisor, journal.boot);
      if (birth !== undefined) entry.job = { ...entry.job, birth };
      // What becomes of an ended job's log is recorded by others.
      if (entry.job.state !== "ended") journal.update(entry.job);
    } catch (error) {
      log("a job's record could not be written", { job: entry.job.id, error });
    }
    write(entry);
  }

  function flush(): void {
    timer = undefined;
    const until = performance.now() + TURN_MS;
    for (const entry of waiting) {
      if (performance.now() > until) return wake(0);
      note(entry);
    }
  }

  function wake(ms: number): void {
    timer ??= setTimeout(flush, ms).unref();
  }

  return {
    later(entry) {
      waiting.add(entry);
      wake(DELAY_MS);
    },
    write,
    [Symbol.dispose]() {
      clearTimeout(timer);
      for (const entry of waiting) note(entry);
    },
  };
}

/** By rename: it is there whole or not at all. */
export function writeJobFile(
  instance: string,
  directory: string,
  { job, requestId, stoppedBy }: Pick<Running, "job" | "requestId" | "stoppedBy">,
): void {
  // What else becomes of a log shows in the directory.
  const log = job.log?.kind === "archived" ? job.log : undefined;
  const head = JSON.stringify({ version: 1, instance, requestId, stoppedBy, log });
  const made = join(directory, "job.new");
  try {
    writeFileSync(made, `${head.slice(0, -1)},"job":${encode(job)}}\n`, { mode: 0o600 });
    renameSync(made, join(directory, "job"));
  } catch (error) {
    rmSync(made, { force: true });
    throw error;
  }
}

/**
 * What is known of the job in `directory`; undefined when it never ran. A `job` that is damaged counts as none. Throws
 * when there is none, and what else would tell cannot be read.
 */
export function readJob(directory: string): Told | undefined {
  // There is a `job` only of what has been exec'ed.
  const told = readJobFile(directory);
  if (told) return told;
  const started = startOf({ directory });
  return started || readExit(directory) ? { job: unknownJob(directory, started) } : undefined;
}

/** Of which only the directory is known. */
function unknownJob(directory: string, started: ReturnType<typeof startOf>): Job {
  const createdAt = started?.at ?? statSync(directory).mtime;
  return {
    ...UNKNOWN,
    id: basename(directory),
    state: "running",
    pid: started?.pid ?? 0,
    createdAt,
    ...(started && { startedAt: started.at }),
    warnings: ["its record was lost: of its start no more is known than its output and its exit record tell"],
  };
}

function readJobFile(directory: string): Told | undefined {
  try {
    const text = readText(join(directory, "job"), MOST_BYTES);
    return text === undefined ? undefined : toldBy(decode(text), basename(directory));
  } catch {
    return undefined;
  }
}

/** Undefined where it is not what writeJobFile() wrote for that job. */
function toldBy(found: unknown, id: string): Told | undefined {
  if (typeof found !== "object" || found === null) return undefined;
  const field = (name: string): unknown => Reflect.get(found, name);
  const [instance, requestId, stoppedBy] = ["instance", "requestId", "stoppedBy"].map(field);
  const job = jobIn(field("job"));
  const log = placeIn(field("log"));
  const names = [requestId, stoppedBy].every((each) => each === undefined || typeof each === "string");
  if (job.id !== id || typeof instance !== "string" || !names) return undefined;
  return {
    job: log ? { ...job, log } : job,
    instance,
    ...(typeof requestId === "string" && { requestId }),
    ...(typeof stoppedBy === "string" && { stoppedBy }),
  };
}

/** It is told of an archived log alone. */
function placeIn(value: unknown): JobLog | undefined {
  if (typeof value !== "object" || value === null || !("at" in value && "compressed" in value)) return undefined;
  const { at, compressed } = value;
  return at instanceof Date && date(at) ? { kind: "archived", at, compressed: compressed === true } : undefined;
}
