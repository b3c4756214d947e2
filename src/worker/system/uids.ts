import { randomInt } from "node:crypto";
import { invalid, JobError } from "../model/errors.ts";
import type { UidRange, WorkerOptions } from "../model/options.ts";
import { accountWithin, rows } from "./users.ts";

/* A uid of its own for each job, which is its gid, too: jobs are strangers to each other, as they are to the host. */

/**
 * What is free on a host: above the uids of containers, and below those that some programs take for negative numbers
 * (systemd, UIDS-GIDS.md); neither SSSD and FreeIPA (to 2,000,200,000), nor OpenShift (to 1,999,999,999), nor
 * /etc/login.defs for subordinate ids (to 600,100,000) give these.
 */
const HOST: UidRange = { first: 2_100_000_000, last: 2_100_065_535 };
/** The range in a user namespace of the usual 65,536 ids (systemd, DynamicUser=). */
const NESTED: UidRange = { first: 61_184, last: 65_519 };

/** Gives uids out. */
export interface Uids {
  readonly range: UidRange;
  /** The one whose last job was started longest ago. Throws JobError `exhausted` when all of them have jobs. */
  readonly take: () => number;
  /** Keeps the uid of a job from others, until `free` is called with it; `user` may be no uid of the range. */
  readonly hold: (user: string) => void;
  readonly free: (user: string) => void;
}

/** Begins behind `before`, or at random. */
export function openUids(range: UidRange, before: number | undefined): Uids {
  const { first, last } = range;
  const taken = new Set<string>();
  const after = (uid: number): number => (uid === last ? first : uid + 1);
  let next = before ?? randomInt(first, last + 1);
  return {
    range,
    take() {
      for (let left = last - first + 1; left > 0; left--) {
        next = after(next);
        if (!taken.has(String(next))) return next;
      }
      throw new JobError("exhausted", `all uids of ${formatRange(range)} have jobs that run (jobsd --job-uids)`);
    },
    hold: (user) => void taken.add(user),
    free: (user) => void taken.delete(user),
  };
}

export function formatRange({ first, last }: UidRange): string {
  return `${first}-${last}`;
}

/**
 * Whose uids jobs have, when their starts name no user: undefined where they have one in common, which is `user`, or that
 * of a worker that is not root. Throws JobError when a range cannot be had.
 */
export function rangeOf({ jobUids, user }: Pick<WorkerOptions, "jobUids" | "user">): UidRange | undefined {
  if (jobUids && process.getuid?.() !== 0)
    throw invalid("job uids", "only a worker that is root can give jobs uids of their own");
  if (jobUids && user !== undefined)
    throw invalid("job uids", `jobs run as ${user} here, who is the worker's user: leave out one of them`);
  if (process.getuid?.() !== 0 || user !== undefined) return undefined;
  const range = jobUids ?? [HOST, NESTED].find(isMapped);
  const remedy = "give others (jobsd --job-uids), or a user for all jobs (jobsd --user)";
  if (!range || !isMapped(range))
    throw new JobError(
      "unavailable",
      `jobs cannot have uids of ${formatRange(range ?? HOST)}: the worker's user namespace has none of them, or not all; ${remedy}`,
    );
  const other = accountWithin(range) ?? subordinateWithin(range);
  if (other === undefined) return range;
  throw new JobError("unavailable", `jobs cannot have uids of ${formatRange(range)}: ${other}; ${remedy}`);
}

/** user_namespaces(7): a line has the first id inside, the first one outside, and their number. */
function isMapped({ first, last }: UidRange): boolean {
  return ["/proc/self/uid_map", "/proc/self/gid_map"].every((path) =>
    rows(path, /\s+/).some(([, start, , count]) => first >= Number(start) && last < Number(start) + Number(count)),
  );
}

/** subuid(5), subgid(5): what users may give the containers that they run. */
function subordinateWithin({ first, last }: UidRange): string | undefined {
  for (const path of ["/etc/subuid", "/etc/subgid"])
    for (const [name, start, count] of rows(path))
      if (Number(start) <= last && Number(start) + Number(count) > first)
        return `${path} gives some of them to ${name}`;
  return undefined;
}
