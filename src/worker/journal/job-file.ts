import { renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { crc32 } from "node:zlib";
import { startOf } from "../log/log.ts";
import type { Job, JobLog } from "../model/job.ts";
import { readExit } from "../supervisor/exit.ts";
import { readText } from "../system/file.ts";
import { decode, encode, UNKNOWN } from "./record.ts";

/* `job` in a job's directory: its record once more, from which a journal can be rebuilt. */

/** No record is longer: a start has 8 MiB at the most, of which JSON makes six times as much. */
const MOST_BYTES = 64 * 1024 * 1024;

/** A job as its directory tells it. */
export interface Told {
  readonly job: Job;
  readonly stoppedBy?: string;
  readonly requestId?: string;
  /** The instance of the journal that the job was in; absent when the directory has no `job`. */
  readonly instance?: string;
}

/**
 * Writes a job's record as one line of JSON, and its CRC-32 as the next. The file is there whole or not at all, because it
 * gets its name last.
 */
export function writeJobFile(
  instance: string,
  directory: string,
  { job, requestId, stoppedBy }: Readonly<{ job: Job; requestId: string | undefined; stoppedBy: string | undefined }>,
): void {
  // The directory shows any other place of a log.
  const log = job.log?.kind === "archived" ? job.log : undefined;
  const head = JSON.stringify({ version: 1, instance, requestId, stoppedBy, log });
  const line = `${head.slice(0, -1)},"job":${encode(job)}}`;
  const made = join(directory, "job.new");
  try {
    writeFileSync(made, `${line}\n${crc32(line)}\n`, { mode: 0o600 });
    renameSync(made, join(directory, "job"));
  } catch (error) {
    rmSync(made, { force: true });
    throw error;
  }
}

/**
 * Returns what the files in `directory` tell of its job; undefined when the job never ran. A damaged `job` counts as none.
 * Throws when there is no `job` and the other files cannot be read.
 */
export function readJob(directory: string): Told | undefined {
  // A `job` is written only after the exec.
  const told = readJobFile(directory);
  if (told) return told;
  const started = startOf({ directory });
  return started || readExit(directory) ? { job: unknownJob(directory, started) } : undefined;
}

/** Makes a job of what its directory alone tells. */
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
    const [line = "", crc] = readText(join(directory, "job"), MOST_BYTES)?.split("\n") ?? [];
    // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- writeJobFile() wrote it
    const { job, log, ...told } = decode(line, Number(crc)) as Told & { readonly log?: JobLog };
    return job.id === basename(directory) ? { ...told, job: log ? { ...job, log } : job } : undefined;
  } catch {
    return undefined;
  }
}
