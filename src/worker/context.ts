import type { Archive } from "./archive/archive.ts";
import type { Hierarchy } from "./cgroup.ts";
import { notFound } from "./errors.ts";
import { isId } from "./id.ts";
import type { Ids } from "./ids.ts";
import type { Job } from "./job.ts";
import type { JobFiles } from "./job-file.ts";
import type { Record as Kept } from "./journal.ts";
import type { CheckedOptions } from "./options.ts";
import type { PatientJournal } from "./pending.ts";
import type { Retirement } from "./retire.ts";
import { runningOf, type Running } from "./running.ts";
import type { Spawner } from "./spawner.ts";
import type { Uids } from "./uids.ts";

/** What the parts of an open worker share. */
export interface Context {
  readonly options: CheckedOptions;
  /** Holds each job's directory. */
  readonly jobsDir: string;
  readonly journal: PatientJournal;
  readonly files: JobFiles;
  readonly hierarchy: Hierarchy;
  /** Where jobs' groups may be: of this daemon, and of those before it, which may have been started in another group. */
  readonly groups: readonly string[];
  readonly ids: Ids;
  /** Absent where jobs have a user in common. */
  readonly uids: Uids | undefined;
  readonly spawner: Spawner;
  readonly archive: Archive | undefined;
  readonly retirement: Retirement;
  /** What to call, of each job, when its log is pruned. */
  readonly readers: Map<string, Set<() => void>>;
  /** By their ids, the jobs that have not ended. */
  readonly running: Map<string, Running>;
  /** By owner and request id, the starts that are under way. */
  readonly requests: Map<string, Promise<Job>>;
  /** The next daemon records what happens from now on. */
  closed: boolean;
}

/** Counts a job among those that run. */
export function track({ jobsDir, running, uids }: Context, job: Job, hierarchy: Hierarchy): Running {
  const entry = runningOf(job, jobsDir, hierarchy);
  running.set(job.id, entry);
  uids?.hold(job.user);
  return entry;
}

/** Does so no more: nothing of it runs. */
export function untrack({ running, uids }: Context, { id, user }: Job): void {
  running.delete(id);
  uids?.free(user);
}

/** Throws `not-found`. */
export function find({ running, journal }: Context, id: string): Running | Kept {
  const entry = running.get(id) ?? (isId(id) ? journal.find(id) : undefined);
  if (!entry) throw notFound(id);
  return entry;
}

export function isRunning(entry: Running | Kept): entry is Running {
  return "launched" in entry;
}
