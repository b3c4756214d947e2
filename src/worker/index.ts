/** The worker as a library: runs Linux processes as jobs, without any network. */
export type { Place } from "./archive/store.ts";
export { examine, type ExamineOptions } from "./doctor/examine.ts";
export type { Finding } from "./doctor/finding.ts";
export { JobError, type JobErrorCode } from "./errors.ts";
export type { Ended, How, Job, JobSpec, OutputExtent, Pressure, Stall, State, Usage } from "./job.ts";
export type { ListFilter } from "./list.ts";
export type { Source } from "./log.ts";
export type { WorkerOptions } from "./options.ts";
export type { Chunk, Gap, Position, StreamOptions } from "./output.ts";
export type { LinuxResources } from "./resources.ts";
export type { Started } from "./start.ts";
export type { Stats, StatsOptions } from "./stats.ts";
export type { Stopped } from "./stop.ts";
export { openWorker, type Worker } from "./worker.ts";
