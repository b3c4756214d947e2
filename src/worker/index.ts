/** The worker as a library: runs Linux processes as jobs, without any network. */
export { checkWorker, type Jobs, openWorker, type Worker } from "./worker.ts";
export { examine, type ExamineOptions } from "./doctor/examine.ts";
export type { Finding } from "./doctor/finding.ts";
export { brief, type Brief } from "./jobs/brief.ts";
export { type ListFilter, MOST_LISTED } from "./jobs/list.ts";
export type { PruneFilter, RemoveOptions } from "./jobs/remove.ts";
export type { Started } from "./jobs/start.ts";
export type { Stats, StatsOptions } from "./jobs/stats.ts";
export type { Stopped } from "./jobs/stop.ts";
export { type Recovered, recoverJournal } from "./journal/rebuild.ts";
export type { Source } from "./log/log.ts";
export type { Chunk, Gap, Position, StreamOptions } from "./log/reader.ts";
export { invalid, JobError, type JobErrorCode, quoted } from "./model/errors.ts";
export { type Part, SWITCHES } from "./model/isolation.ts";
export type {
  Ended,
  How,
  Job,
  JobLog,
  JobSpec,
  LogPolicy,
  NamedRlimit,
  OutputExtent,
  Pressure,
  Stall,
  State,
  Usage,
} from "./model/job.ts";
export type { Figures, WorkerMeter } from "./model/meter.ts";
export type { JobPruneLimits, Place, Renewable, UidRange, WorkerOptions } from "./model/options.ts";
export { type Amounts, checkQuotas, type Quota, type Quotas } from "./model/quota.ts";
export type {
  LinuxBlockIO,
  LinuxCpu,
  LinuxDeviceCgroup,
  LinuxMemory,
  LinuxResources,
  LinuxThrottleDevice,
  LinuxWeightDevice,
} from "./model/resources.ts";
export { exposureOfWay } from "./system/exposure.ts";
