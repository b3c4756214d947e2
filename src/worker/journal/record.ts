import { crc32 } from "node:zlib";
import { reasonOf } from "../../os/errno.ts";
import { timeOf } from "../model/id.ts";
import type { Job } from "../model/job.ts";
import { isTime, placeIfTold, placeIn, type Row } from "./log-place.ts";

/* A job's record: JSON, with a CRC-32 that is kept beside it, so that a record is what was written or is damaged. */

/** A job as the journal keeps it, without what only a running job has. A job that is `damaged` is as its columns tell. */
export interface JobRecord {
  readonly seq: number;
  readonly job: Job;
  readonly stoppedBy?: string;
  readonly requestId?: string;
}

/** Returns a job's JSON. It leaves out the place of the log, which changes later and has columns of its own. */
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

/** Returns what `encode` was given. Throws SyntaxError when `text` is not what has this CRC-32. */
export function decode(text: string, crc: number): unknown {
  if (crc32(text) !== crc) throw new SyntaxError("its CRC-32 is another");
  return revived("", JSON.parse(text));
}

/** Does what a reviver of JSON.parse would do, which is called for each of a hundred thousand arguments. */
function revived(key: string, value: unknown): unknown {
  if (typeof value === "string") return isDate(key) ? new Date(value) : value;
  if (typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) return typeof value[0] === "string" ? value : value.map((each) => revived("", each));
  if ("$bigint" in value) return BigInt(String(value.$bigint));
  if ("$map" in value && Array.isArray(value.$map)) return new Map(value.$map);
  return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, revived(name, each)]));
}

/** Returns the job of a row. Throws SyntaxError when the row is not what a worker wrote. */
function jobOf(row: Row): Job {
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- encode() was given a job
  const job = decode(String(row["job"]), Number(row["crc32"])) as Job;
  if (job.id !== row["id"] || job.owner !== row["owner"] || (job.state === "ended") !== (row["state"] === "ended"))
    throw new SyntaxError("its columns are not its record's");
  const log = placeIn(row);
  return log ? { ...job, log } : job;
}

/** A job without its record, for those who know some of its fields. */
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

/** Tells what can be told of a job whose row is damaged. It counts as ended, because nobody knows how it is. */
function damagedJob(row: Row, why: string): Job {
  const id = String(row["id"]);
  const log = placeIfTold(row);
  const createdAt = [new Date(timeOf(id) ?? 0)].find(isTime) ?? new Date(0);
  const endedAt = [new Date(Number(row["ended_at"] ?? NaN))].find(isTime) ?? createdAt;
  const damaged = `its record in the journal is damaged (row ${String(row["seq"])}: ${why})`;
  return {
    ...UNKNOWN,
    id,
    state: "ended",
    owner: String(row["owner"]),
    createdAt,
    endedAt,
    ended: { how: { kind: "lost", reason: damaged }, exitCode: -1, signal: 0, killed: 0 },
    ...(log && { log }), // its output may be read yet
    warnings: [`${damaged}: jobsd --recover looks for it in its directory`],
    damaged,
  };
}

function orDamaged(row: Row): Job {
  try {
    return jobOf(row);
  } catch (error) {
    return damagedJob(row, reasonOf(error));
  }
}

/** Returns the job that a row of the table `jobs` keeps. */
export function keptIn(row: Row): JobRecord;
export function keptIn(row: Row | undefined): JobRecord | undefined;
export function keptIn(row: Row | undefined): JobRecord | undefined {
  if (row === undefined) return undefined;
  const { seq, stopped_by: stoppedBy, request_id: requestId } = row;
  return {
    seq: Number(seq),
    job: orDamaged(row),
    ...(typeof stoppedBy === "string" && { stoppedBy }),
    ...(typeof requestId === "string" && { requestId }),
  };
}
