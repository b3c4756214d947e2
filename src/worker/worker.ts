import { rmdirSync } from "node:fs";
import { resolve } from "node:path";
import { type Moves, openArchive } from "./archive/archive.ts";
import { moveLog } from "./archive/move.ts";
import { openIds } from "./cgroup/groups-ahead.ts";
import { openHierarchy } from "./cgroup/hierarchy.ts";
import { examine } from "./doctor/examine.ts";
import type { Finding } from "./doctor/finding.ts";
import { type Context, find, isRunning } from "./jobs/context.ts";
import { describeHost } from "./jobs/enforceable.ts";
import { openJobFiles } from "./jobs/job-files.ts";
import { list, type Listed, type ListFilter } from "./jobs/list.ts";
import { current, endOf, unwatch } from "./jobs/running.ts";
import { start, type Started } from "./jobs/start.ts";
import { stats, type Stats, type StatsOptions } from "./jobs/stats.ts";
import { stop, type StopOptions, type Stopped } from "./jobs/stop.ts";
import { stream, type Stream } from "./jobs/stream.ts";
import { recover, removeSpares } from "./jobs/take-up.ts";
import { update } from "./jobs/update.ts";
import { type Journal, openJournal } from "./journal/journal.ts";
import { lockDirectory } from "./journal/lock.ts";
import { patient } from "./journal/patient.ts";
import { openDirectory } from "./journal/state-directory.ts";
import type { StreamOptions } from "./log/reader.ts";
import { JobError } from "./model/errors.ts";
import { sortBehind } from "./model/id.ts";
import type { Job, JobSpec } from "./model/job.ts";
import { type CheckedOptions, checkOptions, type WorkerOptions } from "./model/options.ts";
import type { LinuxResources } from "./model/resources.ts";
import { openRetirement } from "./retention/retire.ts";
import { isolationOf } from "./supervisor/isolation.ts";
import { checkSupervisor, openSpawner } from "./supervisor/spawner.ts";
import { fillReserve } from "./system/reserve.ts";
import { openUids, rangeOf } from "./system/uids.ts";
import { checkRules } from "./system/users.ts";

/** Runs jobs. Every method throws JobError; those that take a job's id throw `not-found` when there is no such job. */
export interface Worker {
  /** Starts a job, once for each owner and request id. Resolves when the command has been exec'ed. */
  start(spec: JobSpec): Promise<Started>;
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
  /** Samples what a job uses, at an interval. Throws `not-found` at once, not at the first sample. Returns the ended job. */
  stats(id: string, options: StatsOptions): Stats;
  /** Examines what this host can enforce. Calls at the same time share one examination. */
  examine(): Promise<readonly Finding[]>;
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
  const options = checkOptions(given);
  checkRules(options);
  const stateDir = resolve(options.stateDir);
  const { jobsDir, sparesDir } = openDirectory(stateDir);
  checkSupervisor(options.supervisor);
  const uidRange = rangeOf(options);
  await using opened = new AsyncDisposableStack();
  const lock = opened.use(lockDirectory(stateDir));
  const journal = opened.use(patient(openJournal(stateDir), options.log));
  const newest = journal.newest();
  if (newest !== undefined) sortBehind(newest);
  const hierarchy = openHierarchy(`jobs-${journal.instance}`, options.cgroup);
  const groups = journal.groupsIn(hierarchy.kind === "none" ? undefined : hierarchy.path);
  opened.defer(() => leave(groups));
  const ids = opened.use(openIds(options.name, hierarchy));
  removeSpares(sparesDir);
  const hidden = [stateDir, ...(options.archive?.kind === "directory" ? [resolve(options.archive.path)] : [])];
  const uids = uidRange && openUids(uidRange, journal.lastUid(uidRange));
  const isolation = isolationOf(
    { ...options, hidden: [...hidden, ...(options.hidden ?? [])], ownTmp: uids !== undefined },
    hierarchy,
  );
  const spawner = opened.use(
    openSpawner(options.supervisor, sparesDir, isolation, (message) => options.log("error", message)),
  );
  const files = opened.use(openJobFiles(journal, (message, facts) => options.log("error", message, facts)));
  const archive = options.archive && opened.use(await openArchive(options.archive, movesOf(options, jobsDir, journal)));
  const readers: Context["readers"] = new Map();
  const retirement = opened.use(
    openRetirement({ options, jobsDir, journal, archive, leave: (id) => readers.get(id)?.forEach((leave) => leave()) }),
  );
  const context: Context = {
    archive,
    retirement,
    readers,
    options,
    jobsDir,
    journal,
    files,
    hierarchy,
    groups,
    ids,
    uids,
    spawner,
    running: new Map(),
    requests: new Map(),
    closed: false,
  };
  await recover(context);
  ids.refill();
  fillReserve();
  await spawner.ready;
  opened.move(); // close() disposes of them from here on
  let examining: Promise<readonly Finding[]> | undefined;

  return {
    host: describeHost(context),
    start: (spec) => start(context, spec),
    stop: (id, how, signal) => stop(context, id, how, signal),
    query(id) {
      const entry = find(context, id);
      return isRunning(entry) ? current(entry) : entry.job;
    },
    list: (filter) => list(context, filter),
    async wait(id, signal) {
      const entry = find(context, id);
      return isRunning(entry) ? endOf(entry, signal) : entry.job;
    },
    stream: (id, how) => stream(context, id, how),
    update: (id, resources) => update(context, id, resources),
    stats: (id, how) => stats(context, id, how),
    examine: () => (examining ??= examine({ ...options, stateDir, hierarchy }).finally(() => (examining = undefined))),
    close: () => close(context).finally(() => lock[Symbol.dispose]()),
  };
}

async function close(context: Context): Promise<void> {
  const { archive, files, groups, ids, journal, running, spawner } = context;
  context.closed = true;
  await Promise.allSettled([...running.values()].flatMap(({ launched, updates }) => [launched.promise, updates]));
  await spawner.close();
  await context.retirement[Symbol.asyncDispose]();
  await archive?.[Symbol.asyncDispose]();
  for (const entry of running.values()) {
    unwatch(entry);
    entry.ended.reject(new JobError("unavailable", "the worker is closing"));
    for (const wake of entry.followers) wake();
  }
  files[Symbol.dispose]();
  journal[Symbol.dispose]();
  ids[Symbol.dispose]();
  leave(groups);
}

/** How the archive moves logs, and how long it pauses between tries. */
function movesOf({ archivePauses, log }: CheckedOptions, jobsDir: string, journal: Journal): Moves {
  return {
    log,
    pauses: archivePauses,
    move: (store, id, signal) => moveLog({ jobsDir, journal }, store, { id, signal }),
  };
}

function leave(groups: readonly string[]): void {
  for (const path of groups)
    try {
      rmdirSync(path);
    } catch {
      // Jobs still run in the group.
    }
}
