import { setTimeout as delay } from "node:timers/promises";
import { TURN_MS, turns } from "../../os/turn.ts";
import type { EndedRow } from "../journal/removals.ts";
import { invalid, JobError, notFound } from "../model/errors.ts";
import type { Ended, Job } from "../model/job.ts";
import { abortSignal, amount, listOf, oneOf, shape, text, texts, truth } from "../model/shape.ts";
import { BATCH } from "../retention/removal.ts";
import { type Context, find, isTracked } from "./context.ts";
import type { TrackedJob } from "./tracked-job.ts";

export interface RemoveOptions {
  /** The copy of the log in the archive goes, too. */
  readonly archived?: boolean;
}

const checkTypes = shape<RemoveOptions>({ archived: truth });

/** Which jobs to remove: of those that have ended, those that meet all conditions. At least one is to be given. */
export interface PruneFilter extends RemoveOptions {
  /** They ended this long ago, or longer; in ms. */
  readonly olderThanMs?: number;
  /** They ended in one of these ways. */
  readonly ends?: readonly Ended["how"]["kind"][];
  readonly labels?: ReadonlyMap<string, string>;
  readonly owner?: string;
  /** Nothing is removed. */
  readonly dryRun?: boolean;
}

const checkFilter = shape<PruneFilter>({
  olderThanMs: amount,
  ends: listOf(oneOf("exited", "signalled", "stopped", "timed-out", "out-of-memory", "lost")),
  labels: texts,
  owner: text,
  dryRun: truth,
  archived: truth,
});

/** An end is recorded, and its group removed, in milliseconds; a disk may be full, or a group not go. */
const MOST_AWAY_MS = 5000;

/**
 * Removes a job that has ended: record, directory and log. Resolves when they are gone. Throws JobError: `not-found`,
 * `precondition` when the job has not ended or there is no archive, `exhausted` when the disk has no room to record it.
 */
export async function remove(context: Context, id: string, options: RemoveOptions): Promise<void> {
  checkTypes("", options);
  const { archived = false } = options;
  const entry = find(context, id);
  checkArchive(context, archived);
  const { state } = entry.job;
  if (state !== "ended")
    throw new JobError("precondition", `job ${id} has not ended, it is ${state}: stop it first`, { facts: { state } });
  if (isTracked(entry)) await putAway(entry);
  const [removed] = await context.retirement.remove([id], archived);
  if (removed === undefined) throw notFound(id);
}

function checkArchive({ archive }: Context, archived: boolean): void {
  if (archived && archive === undefined)
    throw new JobError("precondition", "this daemon has no archive (jobsd --archive): leave the copies in it out", {
      field: "archived",
    });
}

/** Waits until nothing is yet to be done about a job that has ended. */
async function putAway({ untracked, job: { id } }: TrackedJob): Promise<void> {
  const late = new AbortController();
  const waited = delay(MOST_AWAY_MS, "late", { signal: late.signal, ref: false }).catch(() => "closing");
  const first = await Promise.race([untracked.promise, waited]);
  late.abort();
  if (first !== undefined)
    throw new JobError(
      "unavailable",
      `the end of job ${id} cannot be recorded yet, or its cgroup not be removed; try again`,
    );
}

/**
 * Removes jobs, some at a time, and yields their ids; those that ended first come first, or with labels or an owner those that
 * were started last. A job that ends meanwhile may be left. Throws JobError, at once for a filter that is wrong.
 */
export function prune(context: Context, filter: PruneFilter, signal: AbortSignal): AsyncGenerator<readonly string[]> {
  checkFilter("", filter);
  abortSignal("signal", signal);
  const { olderThanMs, ends, labels, archived = false } = filter;
  if (olderThanMs === undefined && !ends?.length && !labels?.size)
    throw invalid(
      "older_than",
      "nothing says which jobs: give an age, a way of ending, or a label; an age of 0 is all",
    );
  checkArchive(context, archived);
  return pruned(context, filter, Date.now() - (olderThanMs ?? 0), signal);
}

async function* pruned(
  context: Context,
  filter: PruneFilter,
  untilMs: number,
  signal: AbortSignal,
): AsyncGenerator<readonly string[]> {
  const { ends, labels = new Map(), owner, archived = false, dryRun = false } = filter;
  const wanted = (job: Job | undefined): boolean =>
    job?.ended !== undefined &&
    !context.tracked.has(job.id) &&
    (job.endedAt?.getTime() ?? 0) <= untilMs &&
    (owner === undefined || job.owner === owner) &&
    (ends === undefined || ends.includes(job.ended.how.kind)) &&
    [...labels].every(([key, value]) => job.labels.get(key) === value);
  const found = labels.size > 0 || owner !== undefined ? searched(context, filter) : oldest(context, untilMs);
  const turn = turns();
  for (const some of found) {
    signal.throwIfAborted();
    const ids = some.filter((id) => wanted(context.journal.find(id)?.job));
    if (ids.length > 0) yield dryRun ? ids : await context.retirement.remove(ids, archived);
    await turn();
  }
}

function* searched({ journal }: Context, { labels, owner }: PruneFilter): Generator<readonly string[]> {
  for (let before: number | undefined = Number.MAX_SAFE_INTEGER; before !== undefined;) {
    const found = journal.list({
      before,
      limit: BATCH,
      labels,
      owner,
      keep: () => true,
      untilMs: performance.now() + TURN_MS,
    });
    yield found.records.map(({ job }) => job.id);
    before = found.next;
  }
}

function* oldest({ journal: { removals } }: Context, untilMs: number): Generator<readonly string[]> {
  for (let after: EndedRow | undefined; ;) {
    const found = removals.endedFirst(BATCH, false, after);
    yield found.filter(({ endedMs }) => endedMs <= untilMs).map(({ id }) => id);
    after = found.at(-1);
    if (after === undefined || after.endedMs > untilMs) return;
  }
}
