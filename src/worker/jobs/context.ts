import type { Archive } from "../archive/archive.ts";
import type { GroupsAhead } from "../cgroup/groups-ahead.ts";
import type { Hierarchy } from "../cgroup/hierarchy.ts";
import type { OwnerGroups } from "../cgroup/owner-groups.ts";
import type { JobRecord } from "../journal/record.ts";
import type { PatientJournal } from "../journal/patient.ts";
import { notFound } from "../model/errors.ts";
import { isId } from "../model/id.ts";
import type { Job } from "../model/job.ts";
import type { CheckedOptions } from "../model/options.ts";
import { text } from "../model/shape.ts";
import type { Retirement } from "../retention/retirement.ts";
import type { Spawner } from "../supervisor/spawner.ts";
import type { Uids } from "../system/uids.ts";
import type { JobFiles } from "./job-files.ts";
import type { PageTokens } from "./page-tokens.ts";
import { type TrackedJob, trackedJob } from "./tracked-job.ts";

/** State that the parts of an open worker share. */
export interface Context {
  readonly options: CheckedOptions;
  /** Holds each job's directory. */
  readonly jobsDir: string;
  readonly journal: PatientJournal;
  readonly files: JobFiles;
  readonly hierarchy: Hierarchy;
  /**
   * The groups that may contain jobs' groups: this daemon's, those of earlier daemons that were started elsewhere, and the
   * owners' groups that were in these.
   */
  readonly groups: readonly string[];
  readonly groupsAhead: GroupsAhead;
  readonly ownerGroups: OwnerGroups;
  /** Undefined when jobs share a user. */
  readonly uids: Uids | undefined;
  readonly spawner: Spawner;
  readonly archive: Archive | undefined;
  readonly retirement: Retirement;
  /** Functions to call when a job's log is pruned, by the job's id. */
  readonly readers: Map<string, Set<() => void>>;
  /** The jobs that this process tracks, by id. */
  readonly tracked: Map<string, TrackedJob>;
  /** The starts that are under way, by owner and request id. */
  readonly requests: Map<string, Starting>;
  readonly pageTokens: PageTokens;
  /** Set by close(): what happens from then on is recorded by the next daemon. */
  closed: boolean;
}

/** A start that is under way. */
export interface Starting {
  readonly job: Promise<Job>;
  /** How many calls wait for it. */
  callers: number;
  /** What it has made so far. */
  readonly made: { entry?: TrackedJob };
}

/** Tracks a job from now on, and keeps its uid from others. */
export function track({ jobsDir, ownerGroups, tracked, uids }: Context, job: Job, hierarchy: Hierarchy): TrackedJob {
  const entry = trackedJob(job, jobsDir, hierarchy);
  tracked.set(job.id, entry);
  ownerGroups.hold(entry.group);
  uids?.hold(job.user);
  return entry;
}

/** Stops tracking a job, of which nothing runs any more. */
export function untrack({ ownerGroups, tracked, uids }: Context, { id, user }: Job): void {
  ownerGroups.free(tracked.get(id)?.group);
  tracked.get(id)?.untracked.resolve();
  tracked.delete(id);
  uids?.free(user);
}

/** The job, from memory or from the journal. Throws `not-found`. */
export function find({ tracked, journal }: Context, id: string): TrackedJob | JobRecord {
  text("job_id", id);
  const entry = tracked.get(id) ?? (isId(id) ? journal.find(id) : undefined);
  if (!entry) throw notFound(id);
  return entry;
}

/**
 * Throws `not-found` unless the job is this owner's. Another owner's job takes as long as one that there is not: both are
 * looked for in the journal.
 */
export function checkOwner({ tracked, journal }: Context, id: string, owner: string): void {
  if (tracked.get(id)?.job.owner === owner) return;
  if (!isId(id)) throw notFound(id);
  const found = journal.ownerOf(id);
  if (found !== owner) throw notFound(id, found === undefined ? undefined : "OTHER_OWNER");
}

export function isTracked(entry: TrackedJob | JobRecord): entry is TrackedJob {
  return "launched" in entry;
}
