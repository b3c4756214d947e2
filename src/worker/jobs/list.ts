import { invalid } from "../model/errors.ts";
import type { Job, State } from "../model/job.ts";
import { amount, listOf, number, oneOf, shape, text, texts } from "../model/shape.ts";
import { brief, type Brief } from "./brief.ts";
import type { Context } from "./context.ts";
import { current } from "./tracked-job.ts";

/** The most jobs on one page. */
export const MOST_LISTED = 1000;

export interface ListFilter {
  readonly states?: readonly State[];
  readonly labels?: ReadonlyMap<string, string>;
  readonly owner?: string;
  /** The most jobs on a page, 1 to MOST_LISTED. */
  readonly limit: number;
  readonly pageToken?: string;
  /** How long a search may hold the event loop, in ms; without a limit when absent. */
  readonly stepMs?: number;
}

const checkTypes = shape<ListFilter>(
  {
    states: listOf(oneOf("starting", "running", "stopping", "ended")),
    labels: texts,
    owner: text,
    limit: number,
    pageToken: text,
    stepMs: amount,
  },
  ["limit"],
);

/** Jobs, newest first; `nextPageToken` is absent on the last page. With `stepMs` a page may have fewer jobs than `limit`, or none. */
export interface Listed {
  readonly jobs: readonly Brief[];
  readonly nextPageToken?: string;
}

export function list(context: Context, filter: ListFilter): Listed {
  checkTypes("", filter);
  const { states, labels = new Map(), owner, limit, pageToken, stepMs = Infinity } = filter;
  if (!Number.isInteger(limit) || limit < 1 || limit > MOST_LISTED)
    throw invalid("limit", `${limit} is not between 1 and ${MOST_LISTED}`);
  const { tracked, journal, pageTokens } = context;
  const before = pageToken === undefined ? Number.MAX_SAFE_INTEGER : pageTokens.placeOf(pageToken);
  if (before === undefined) throw invalid("page_token", "is not a token that List returned");
  const untilMs = performance.now() + stepMs;
  const wanted = (job: Job): boolean =>
    (owner === undefined || job.owner === owner) &&
    (states === undefined || states.includes(job.state)) &&
    [...labels].every(([key, value]) => job.labels.get(key) === value);
  // The journal may be behind for a job that is tracked, and every job that has not ended is.
  const now = (job: Job): Job => tracked.get(job.id)?.job ?? job;
  const unwanted = new Set([...tracked.values()].filter(({ job }) => !wanted(job)).map(({ seq }) => seq));
  const { records, next } =
    states?.includes("ended") === false
      ? { records: trackedBefore(context, before, wanted), next: undefined }
      : journal.list({
          before,
          limit: limit + 1,
          labels,
          owner,
          skip: (seq) => unwanted.has(seq),
          keep: (job) => wanted(now(job)),
          untilMs,
        });
  const page = records.slice(0, limit);
  const from = records.length > limit ? page.at(-1)?.seq : next;
  return {
    jobs: page.map(({ job }) => {
      const entry = tracked.get(job.id);
      return brief(entry ? current(entry) : job);
    }),
    ...(from !== undefined && { nextPageToken: pageTokens.of(from) }),
  };
}

/** Returns the tracked jobs whose rows are below `before` and that are wanted, newest first. */
function trackedBefore(
  { tracked }: Context,
  before: number,
  wanted: (job: Job) => boolean,
): { readonly seq: number; readonly job: Job }[] {
  return [...tracked.values()]
    .flatMap(({ seq, job }) => (seq !== undefined && seq < before && wanted(job) ? [{ seq, job }] : []))
    .toSorted((a, b) => b.seq - a.seq);
}
