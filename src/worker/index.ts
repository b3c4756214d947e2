/** The worker as a library: runs Linux processes as jobs, without any network. */
export { JobError, type JobErrorCode } from "./errors.ts";
export type { Ended, How, Job, JobSpec, OutputExtent, State, Usage } from "./job.ts";
export type { Source } from "./log.ts";
export type { Chunk, Gap, Position, StreamOptions } from "./output.ts";
export type { LinuxResources } from "./resources.ts";
export { openWorker, type ListFilter, type Started, type Stopped, type Worker, type WorkerOptions } from "./worker.ts";
