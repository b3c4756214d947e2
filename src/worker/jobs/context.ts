import type { Archive } from "../archive/archive.ts";
import type { Ids } from "../cgroup/groups-ahead.ts";
import type { Hierarchy } from "../cgroup/hierarchy.ts";
import type { Record as Kept } from "../journal/journal.ts";
import type { PatientJournal } from "../journal/patient.ts";
import { notFound } from "../model/errors.ts";
import { isId } from "../model/id.ts";
import type { Job } from "../model/job.ts";
import type { CheckedOptions } from "../model/options.ts";
import type { Retirement } from "../retention/retire.ts";
import type { Spawner } from "../supervisor/spawner.ts";
import type { Uids } from "../system/uids.ts";
import type { JobFiles } from "./job-files.ts";
import { type Running, runningOf } from "./running.ts";

/** What the parts of an open worker share. */
export interface Context {
  readonly options: CheckedOptions;
  /** Holds each job's directory. */
  readonly jobsDir: string;
  readonly journal: PatientJournal;
  readonly files: JobFiles;
  readonly hierarchy: Hierarchy;
  /** The groups that may contain jobs' groups: this daemon's, and those of earlier daemons that were started elsewhere. */
  readonly groups: readonly string[];
  readonly ids: Ids;
  /** Undefined when jobs share a user. */
  readonly uids: Uids | undefined;
  readonly spawner: Spawner;
  readonly archive: Archive | undefined;
  readonly retirement: Retirement;
  /** By job id, what to call when the job's log is pruned. */
  readonly readers: Map<string, Set<() => void>>;
  /** The jobs that have not ended, by id. */
  readonly running: Map<string, Running>;
  /** The starts that are under way, by owner and request id. */
  readonly requests: Map<string, Promise<Job>>;
  /** Set by close(): what happens from then on is recorded by the next daemon. */
  closed: boolean;
}

/** Adds a job to those that have not ended. */
export function track({ jobsDir, running, uids }: Context, job: Job, hierarchy: Hierarchy): Running {
  const entry = runningOf(job, jobsDir, hierarchy);
  running.set(job.id, entry);
  uids?.hold(job.user);
  return entry;
}

/** Removes a job from those, once nothing of it runs. */
export function untrack({ running, uids }: Context, { id, user }: Job): void {
  running.delete(id);
  uids?.free(user);
}

/** The job, from memory or from the journal. Throws `not-found`. */
export function find({ running, journal }: Context, id: string): Running | Kept {
  const entry = running.get(id) ?? (isId(id) ? journal.find(id) : undefined);
  if (!entry) throw notFound(id);
  return entry;
}

export function isRunning(entry: Running | Kept): entry is Running {
  return "launched" in entry;
}
