import { rmdirSync } from "node:fs";
import { resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { type Moves, openArchive } from "./archive/archive.ts";
import { moveLog } from "./archive/move.ts";
import { openGroupsAhead } from "./cgroup/groups-ahead.ts";
import { openHierarchy } from "./cgroup/hierarchy.ts";
import { openOwnerGroups, ownerGroupsIn } from "./cgroup/owner-groups.ts";
import { examine } from "./doctor/examine.ts";
import type { Finding } from "./doctor/finding.ts";
import { quotaFindings } from "./doctor/quotas.ts";
import { checkOwner, type Context, find, isTracked } from "./jobs/context.ts";
import { describeHost } from "./jobs/enforceable.ts";
import { figuresOf, meteredStart } from "./jobs/figures.ts";
import { openJobFiles } from "./jobs/job-files.ts";
import { list, type Listed, type ListFilter } from "./jobs/list.ts";
import { current, endOf, unwatch } from "./jobs/tracked-job.ts";
import { pageTokens } from "./jobs/page-tokens.ts";
import { prune, type PruneFilter, remove, type RemoveOptions } from "./jobs/remove.ts";
import { settle, start, type Started } from "./jobs/start.ts";
import { stats, type Stats, type StatsOptions } from "./jobs/stats.ts";
import { stop, type StopOptions, type Stopped } from "./jobs/stop.ts";
import { stream, type Stream } from "./jobs/stream.ts";
import { limitOwners, removeSpares, takeUpAll } from "./jobs/take-up.ts";
import { update } from "./jobs/update.ts";
import { type Journal, openJournal } from "./journal/journal.ts";
import { lockDirectory } from "./journal/lock.ts";
import { patient } from "./journal/patient.ts";
import { openDirectory } from "./journal/state-directory.ts";
import type { StreamOptions } from "./log/reader.ts";
import { JobError } from "./model/errors.ts";
import { sortBehind } from "./model/id.ts";
import type { Job, JobSpec } from "./model/job.ts";
import type { Figures } from "./model/meter.ts";
import { type CheckedOptions, checkOptions, type Renewable, RENEWABLE, type WorkerOptions } from "./model/options.ts";
import type { LinuxResources } from "./model/resources.ts";
import { abortSignal } from "./model/shape.ts";
import { openRetirement } from "./retention/retirement.ts";
import { isolationOf } from "./supervisor/isolation.ts";
import { checkSupervisor, openSpawner } from "./supervisor/spawner.ts";
import { fillReserve } from "./system/reserve.ts";
import { openUids, rangeOf } from "./system/uids.ts";
import { checkRules } from "./system/users.ts";

/** Jobs. Every method throws JobError; those that take a job's id throw `not-found` when there is no such job. */
export interface Jobs {
  /**
   * Starts a job, once for each owner and request id. Resolves when the command has been exec'ed. `signal` ends a start that
   * waits for a file, if no other call waits for the same one.
   */
  start(spec: JobSpec, signal?: AbortSignal): Promise<Started>;
  /** Ends a job. Resolves when nothing of it runs any more; `signal` ends only the waiting. */
  stop(id: string, options: StopOptions, signal?: AbortSignal): Promise<Stopped>;
  query(id: string): Job;
  /** A page of jobs, newest first; `nextPageToken` is absent on the last page. */
  list(filter: ListFilter): Listed;
  /** Resolves when the job has ended; `signal` ends the waiting. */
  wait(id: string, signal?: AbortSignal): Promise<Job>;
  /** Streams a job's output. Throws `not-found` at once, not at the first chunk. Returns the offset to resume from. */
  stream(id: string, options: StreamOptions): Stream;
  /** Changes limits of a job that has not ended: all that are named, or none. The others stay. */
  update(id: string, resources: LinuxResources): Promise<Job>;
  /** Removes a job that has ended: record, directory and log. Resolves when they are gone. */
  remove(id: string, options?: RemoveOptions): Promise<void>;
  /** Removes the jobs that have ended and that `filter` names, and yields their ids, some at a time. */
  prune(filter: PruneFilter, signal: AbortSignal): AsyncGenerator<readonly string[]>;
  /** Samples what a job uses, at an interval. Throws `not-found` at once, not at the first sample. Returns the ended job. */
  stats(id: string, options: StatsOptions): Stats;
  /** Examines what this host can enforce. Calls at the same time share one examination. */
  examine(): Promise<readonly Finding[]>;
}

/** Runs jobs: those of all owners. */
export interface Worker extends Jobs {
  /** The jobs of one owner, who starts them all: another owner's job is as one that there is not. */
  of(owner: string): Jobs;
  /** What there is to do now. */
  figures(): Figures;
  /**
   * Checks options to go on with; what is absent has its default. Returns what takes them, for starts and ends from then on,
   * and cannot fail. Throws JobError for a wrong option.
   */
  renew(next: Renewable): () => void;
  /** What this host can enforce, in one line, as it was when the worker opened. */
  readonly host: string;
  /** Closes the worker. Its jobs keep running. */
  close(): Promise<void>;
}

/**
 * Opens the worker of a state directory. Throws JobError: `unavailable` when another worker has that directory, or it cannot
 * be used; `invalid` for a wrong option.
 */
export async function openWorker(given: WorkerOptions): Promise<Worker> {
  const options = checkWorker(given);
  checkSupervisor(options.supervisor);
  await using opening = new AsyncDisposableStack();
  const context = await openContext({ ...options, stateDir: resolve(options.stateDir) }, opening);
  await takeUpAll(context);
  settle(context);
  context.groupsAhead.refill();
  fillReserve();
  await context.spawner.ready;
  const opened = opening.move();
  let examining: Promise<readonly Finding[]> | undefined;
  /** What an owner's jobs may have is told to that owner alone, and to who sees all jobs. */
  const examined = async (owner?: string): Promise<readonly Finding[]> => {
    const { quotas, ...asked } = context.options;
    const { hierarchy } = context;
    const found = await (examining ??= examine({ ...asked, hierarchy }).finally(() => (examining = undefined)));
    return quotas ? [...found, ...quotaFindings(quotas, found, owner)] : found;
  };

  return {
    host: describeHost(context),
    ...jobsIn(context, examined),
    of: (owner) => jobsIn(context, examined, owner),
    figures: () => figuresOf(context),
    renew: (next) => renewed(context, next),
    async close() {
      await leaveJobs(context);
      await opened.disposeAsync();
    },
  };
}

/** All jobs, or with `owner` those of that owner alone. */
function jobsIn(context: Context, examined: (owner?: string) => ReturnType<Jobs["examine"]>, owner?: string): Jobs {
  const seen = (id: string): string => {
    if (owner !== undefined) checkOwner(context, id, owner);
    return id;
  };
  const { meter } = context.options;
  return {
    start(asked, signal) {
      const spec = owner === undefined ? asked : { ...asked, owner };
      return meter ? meteredStart(context, spec, { meter, signal }) : start(context, spec, signal);
    },
    stop: async (id, how, signal) => stop(context, seen(id), how, signal),
    query(id) {
      const entry = find(context, seen(id));
      return isTracked(entry) ? current(entry) : entry.job;
    },
    list: (filter) => list(context, owner === undefined ? filter : { ...filter, owner }),
    async wait(id, signal) {
      if (signal !== undefined) abortSignal("signal", signal);
      const entry = find(context, seen(id));
      return isTracked(entry) ? endOf(entry, signal) : entry.job;
    },
    stream: (id, how) => stream(context, seen(id), how),
    update: async (id, resources) => update(context, seen(id), resources),
    remove: async (id, how = {}) => remove(context, seen(id), how),
    prune: (filter, signal) => prune(context, owner === undefined ? filter : { ...filter, owner }, signal),
    stats: (id, how) => stats(context, seen(id), how),
    examine: () => examined(owner),
  };
}

/** Fills in defaults. Throws JobError `invalid` for a wrong option, whose name is its `field`. */
export function checkWorker(given: WorkerOptions): CheckedOptions {
  const options = checkOptions(given);
  checkRules(options);
  return options;
}

/** Checks options to go on with. Returns what takes them: all parts of the worker have the same object. */
function renewed(context: Context, next: Renewable): () => void {
  const { options, retirement } = context;
  const wanted = Object.fromEntries(RENEWABLE.map((name) => [name, next[name]]));
  const checked = checkWorker({ ...options, ...wanted });
  return () => {
    Object.assign(options, Object.fromEntries(RENEWABLE.map((name) => [name, checked[name]])));
    try {
      retirement.renew();
    } catch (error) {
      options.log("error", "what is to be done with the logs of ended jobs is taken by the next daemon", { error });
    }
    limitOwners(context);
  };
}

/** Opens everything that the parts of a worker share; `opened` disposes of it, the lock of the state directory last. */
async function openContext(options: CheckedOptions, opened: AsyncDisposableStack): Promise<Context> {
  const { archive: place, log, name, stateDir, supervisor } = options;
  const { jobsDir, sparesDir } = openDirectory(stateDir);
  const uidRange = rangeOf(options);
  opened.use(lockDirectory(stateDir));
  let groups: readonly string[] = [];
  // After the journal, which removes the groups of the jobs whose ends it writes last.
  opened.defer(() => removeEmpty(groups));
  const journal = opened.use(patient(openJournal(stateDir), log));
  // The newest record may have been removed since.
  for (const id of [journal.newest(), journal.settled]) if (id !== undefined) sortBehind(id);
  const hierarchy = openHierarchy(`jobs-${journal.instance}`, options.cgroup);
  groups = journal.groupsIn(hierarchy.kind === "none" ? undefined : hierarchy.path);
  // Before those that they are in, so that they are removed first.
  groups = [...ownerGroupsIn(groups), ...groups];
  const ownerGroups = opened.use(openOwnerGroups(hierarchy, (message, facts) => log("warn", message, facts)));
  const groupsAhead = opened.use(openGroupsAhead(name, hierarchy, (path) => ownerGroups.leave(path)));
  removeSpares(sparesDir);
  const uids = uidRange && openUids(uidRange, journal.lastUid(uidRange));
  const hidden = [stateDir, ...(place?.kind === "directory" ? [resolve(place.path)] : []), ...(options.hidden ?? [])];
  const isolation = isolationOf({ ...options, hidden, ownTmp: uids !== undefined }, hierarchy);
  const spawner = opened.use(openSpawner(supervisor, sparesDir, isolation, (message) => log("error", message)));
  const files = opened.use(openJobFiles(journal, (message, facts) => log("error", message, facts)));
  const archive =
    place &&
    opened.use(
      await openArchive(
        place,
        movesOf({ options, jobsDir, journal }, () => retirement.archived()),
      ),
    );
  const readers: Context["readers"] = new Map();
  const tracked: Context["tracked"] = new Map();
  const leave = (id: string): void => readers.get(id)?.forEach((end) => end());
  const retirement = opened.use(
    openRetirement({ options, jobsDir, sparesDir, journal, archive, leave, held: (id) => tracked.has(id) }),
  );
  return {
    archive,
    retirement,
    readers,
    options,
    jobsDir,
    journal,
    files,
    hierarchy,
    groups,
    groupsAhead,
    ownerGroups,
    uids,
    spawner,
    tracked,
    requests: new Map(),
    pageTokens: pageTokens(journal.secret),
    closed: false,
  };
}

/** A start, an update or the removal of a group takes milliseconds; after this long it waits for something that may never come. */
const HANGING_MS = 3000;

/** Lets starts, updates and removals of groups under way finish, and ends everybody's waiting. The jobs go on. */
async function leaveJobs(context: Context): Promise<void> {
  const { spawner, tracked } = context;
  context.closed = true;
  const underWay = [...tracked.values()].flatMap(({ launched, updates, away }) => [launched.promise, updates, away]);
  const late = new AbortController();
  // The next daemon finds out what became of a start that still waits for a file.
  await Promise.race([Promise.allSettled(underWay), delay(HANGING_MS, undefined, late).catch(() => {})]);
  late.abort();
  await spawner.close();
  for (const entry of tracked.values()) {
    unwatch(entry);
    entry.ended.reject(new JobError("unavailable", "the worker is closing"));
    for (const wake of entry.followers) wake();
  }
}

/** How the archive moves logs, and how long it pauses between tries; `moved` is told of each. */
function movesOf(
  { options, ...home }: { readonly options: CheckedOptions; readonly jobsDir: string; readonly journal: Journal },
  moved: () => void,
): Moves {
  const { archivePauses, log } = options;
  return {
    log,
    pauses: archivePauses,
    move: (store, id, signal) => moveLog(home, store, { id, signal }).then(moved),
  };
}

/** Removes those of the groups in which no jobs run. */
function removeEmpty(groups: readonly string[]): void {
  for (const path of groups)
    try {
      rmdirSync(path);
    } catch {
      // Jobs still run in the group.
    }
}
