import { renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { startOf } from "../log/log.ts";
import { date, jobIn } from "../model/job-check.ts";
import type { Job, JobLog } from "../model/job.ts";
import { readExit } from "../supervisor/exit.ts";
import { readText } from "../system/file.ts";
import { decode, encode, UNKNOWN } from "./journal.ts";

/* `job` in a job's directory: its record once more, from which a journal can be rebuilt. */

/** No record is longer: a start has 8 MiB at the most, of which JSON makes six times as much. */
const MOST_BYTES = 64 * 1024 * 1024;

/** A job as its directory tells it. */
export interface Told {
  readonly job: Job;
  readonly stoppedBy?: string;
  readonly requestId?: string;
  /** Of the journal that it was in; absent when there is no `job`. */
  readonly instance?: string;
}

/** By rename: it is there whole or not at all. */
export function writeJobFile(
  instance: string,
  directory: string,
  { job, requestId, stoppedBy }: Readonly<{ job: Job; requestId: string | undefined; stoppedBy: string | undefined }>,
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
