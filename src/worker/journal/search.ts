import type { DatabaseSync } from "node:sqlite";
import type { Job } from "../model/job.ts";
import type { Row } from "./log-place.ts";
import { keptIn, type JobRecord } from "./record.ts";

/* Pages of jobs. Each condition that has an index is a list of row numbers in descending order. */

/** What is searched for, newest first, in the rows below `before`. */
export interface Search {
  readonly before: number;
  readonly limit: number;
  /** Only jobs with all of these labels. */
  readonly labels?: ReadonlyMap<string, string> | undefined;
  readonly owner?: string | undefined;
  /** Tells that a row is not wanted, so that its record is not read. */
  readonly skip?: (seq: number) => boolean;
  readonly keep: (job: Job) => boolean;
  /** When to leave off, on the clock of performance.now(). */
  readonly untilMs?: number;
}

/** `next`: where to go on, `before` what was seen; absent when all was. */
export interface Found {
  readonly records: readonly JobRecord[];
  readonly next?: number;
}

/** Returns the highest row number below `below` that meets a condition. */
type Condition = (below: number) => number | undefined;

/** The labels of a job as the table `labels` has them. */
export function labelTexts({ labels }: Pick<Job, "labels">): string[] {
  return [...labels].map((label) => JSON.stringify(label));
}

/** @param columns a SELECT of the columns that a record is read from */
export function searchIn(database: DatabaseSync, columns: string): (search: Search) => Found {
  const bySeq = database.prepare(`${columns} WHERE seq = ?`);
  const all = database.prepare("SELECT seq FROM jobs WHERE seq < ? ORDER BY seq DESC LIMIT 1");
  const owned = database.prepare(
    "SELECT seq FROM jobs INDEXED BY jobs_owner WHERE seq < ? AND owner = ? ORDER BY seq DESC LIMIT 1",
  );
  const labelled = database.prepare("SELECT seq FROM labels WHERE seq < ? AND label = ? ORDER BY seq DESC LIMIT 1");
  for (const each of [bySeq, all, owned, labelled]) each.setReadBigInts(true);
  const seqIn = (row: Row | undefined): number | undefined => (row === undefined ? undefined : Number(row["seq"]));

  function conditions({ labels = new Map(), owner }: Search): Condition[] {
    const found: Condition[] = labelTexts({ labels }).map((label) => (below) => seqIn(labelled.get(below, label)));
    if (owner !== undefined) found.push((below) => seqIn(owned.get(below, owner)));
    return found.length > 0 ? found : [(below) => seqIn(all.get(below))];
  }

  return (search) => {
    const { before, limit, keep, skip = () => false, untilMs = Infinity } = search;
    const records: JobRecord[] = [];
    let next = before;
    for (const { seq, hit } of meeting(conditions(search), before)) {
      // At least one is looked at, so that each call gets on.
      if (records.length === limit || (next !== before && performance.now() > untilMs)) return { records, next };
      next = hit ? seq : seq + 1; // below it nothing has been decided yet
      const kept = hit && !skip(seq) ? keptIn(bySeq.get(seq)) : undefined;
      if (kept && keep(kept.job)) records.push(kept);
    }
    return { records };
  };
}

/**
 * Yields the row numbers below `before` that meet all conditions (`hit`), and on the way some that meet a few of them. Each
 * condition in turn leaps to the highest row at or below the others' last one, so that the rarest of them sets the pace.
 */
function* meeting(
  conditions: readonly Condition[],
  before: number,
): Generator<{ readonly seq: number; readonly hit: boolean }> {
  let agreed = 0;
  let at = before;
  for (let turn = 0; ; turn++) {
    const seq = conditions[turn % conditions.length]?.(agreed === 0 ? at : at + 1);
    if (seq === undefined) return;
    agreed = seq === at ? agreed + 1 : 1;
    at = seq;
    const hit = agreed === conditions.length;
    yield { seq, hit };
    if (hit) agreed = 0;
  }
}
