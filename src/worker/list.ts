import type { Context } from "./context.ts";
import { invalid } from "./errors.ts";
import type { Job, State } from "./job.ts";
import { current } from "./running.ts";

export interface ListFilter {
  readonly states?: readonly State[];
  readonly labels?: ReadonlyMap<string, string>;
  /** At most so many, 1 to 1000. */
  readonly limit: number;
  readonly pageToken?: string;
}

/** Jobs, newest first; `nextPageToken` is absent on the last page. */
export interface Listed {
  readonly jobs: readonly Job[];
  readonly nextPageToken?: string;
}

export function list(
  { journal, running }: Context,
  { states, labels = new Map(), limit, pageToken }: ListFilter,
): Listed {
  if (!Number.isInteger(limit) || limit < 1 || limit > 1000) throw invalid("limit", "must be 1 to 1000");
  const before = pageToken === undefined ? Number.MAX_SAFE_INTEGER : Number(pageToken);
  if (!Number.isSafeInteger(before)) throw invalid("page_token", "is not one that List gave");
  // What runs is known here better than in the journal.
  const now = (job: Job): Job => running.get(job.id)?.job ?? job;
  const wanted = (job: Job): boolean =>
    (states === undefined || states.includes(now(job).state)) &&
    [...labels].every(([key, value]) => job.labels.get(key) === value);
  const [label] = labels;
  const found = journal.list(wanted, before, limit + 1, { alive: states?.includes("ended") === false, label });
  const page = found.slice(0, limit);
  const last = page.at(-1);
  return {
    jobs: page.map(({ job }) => {
      const entry = running.get(job.id);
      return entry ? current(entry) : job;
    }),
    ...(found.length > limit && last && { nextPageToken: String(last.seq) }),
  };
}
