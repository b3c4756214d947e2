import type { JobErrorCode } from "./errors.ts";
import type { Job } from "./job.ts";

/** Hears what a worker does, as it happens, on the path of a start or an end: it takes no time, and throws nothing. */
export interface WorkerMeter {
  /** A job's command was exec'ed, so many ms after the start was asked for. */
  started(job: Job, tookMs: number): void;
  /** A start was answered with the job of an earlier start that has its request id. */
  repeated(): void;
  /** A start was refused, or failed. */
  refused(code: JobErrorCode): void;
  /** A job has ended, and everybody who waited for the end was told. */
  ended(job: Job): void;
}

/** What a worker has to do now. */
export interface Figures {
  /** The jobs that have not ended, by their state. */
  readonly jobs: Readonly<Record<"starting" | "running" | "stopping", number>>;
  /** Jobs that have ended and are kept; undefined while the worker did not have to count them. */
  readonly endedJobs: number | undefined;
  /** The most jobs at once: `maxJobs` of the worker's options. */
  readonly maxJobs: number;
  /** Starts that wait for a supervisor. */
  readonly waitingStarts: number;
  /** Writes that the journal's disk could not take yet. */
  readonly waitingWrites: number;
  /** Logs of ended jobs that wait to be compressed, or to be pruned where that has failed. */
  readonly waitingLogs: number;
  /** Logs of ended jobs that wait for the archive. */
  readonly waitingArchive: number;
}
