import { invalid, quoted } from "./errors.ts";
import { amount, type Check, mapOf, shape, whole } from "./shape.ts";

/** Amounts of what a job may have. */
export interface Amounts {
  readonly memoryBytes?: number;
  readonly cpus?: number;
  readonly pids?: number;
  readonly timeLimitMs?: number;
  /** Of the output log on the worker's disk; 0 for no limit. */
  readonly logLimitBytes?: number;
}

/** What the jobs of an owner may have. What is absent has no limit. */
export interface Quota {
  /** For a start that asks for none; the maximum where this is absent. */
  readonly default?: Amounts;
  /** The most that a start or an update may ask for. */
  readonly max?: Amounts;
  /** The most that all jobs of the owner have together. */
  readonly sum?: Pick<Amounts, "memoryBytes" | "cpus" | "pids">;
  /** The most jobs at once. */
  readonly jobs?: number;
}

/** The quota of each owner; by owner only what differs from that of all. */
export interface Quotas {
  readonly all?: Quota;
  readonly owners?: ReadonlyMap<string, Quota>;
}

const amounts = { memoryBytes: amount, cpus: amount, pids: amount };
const allAmounts = shape<Amounts>({ ...amounts, timeLimitMs: amount, logLimitBytes: amount });
const quota = shape<Quota>({
  default: allAmounts,
  max: allAmounts,
  sum: shape<NonNullable<Quota["sum"]>>(amounts),
  jobs: whole,
});

/** Throws `invalid` where a field has another type. */
export const checkQuotaTypes: Check = shape<Quotas>({ all: quota, owners: mapOf(quota) });

/** Returns the quota of an owner; undefined where there is none. */
export function quotaOf(quotas: Quotas | undefined, owner: string): Quota | undefined {
  const own = quotas?.owners?.get(owner);
  return own ? withOwn(quotas?.all, own) : quotas?.all;
}

function withOwn(all: Quota = {}, own: Quota): Quota {
  const part = <Name extends "default" | "max" | "sum">(name: Name) => ({ [name]: { ...all[name], ...own[name] } });
  return { ...all, ...own, ...part("default"), ...part("max"), ...part("sum") };
}

const NAMES = {
  memoryBytes: "memory",
  cpus: "cpus",
  pids: "pids",
  timeLimitMs: "time-limit",
  logLimitBytes: "log-limit",
} as const;

/** Throws `invalid` for a default above its maximum, which no start could have. */
export function checkQuotas(quotas: Quotas): void {
  for (const owner of [undefined, ...(quotas.owners?.keys() ?? [])]) {
    const quota = owner === undefined ? quotas.all : quotaOf(quotas, owner);
    const whose = owner === undefined ? "" : `of ${quoted(owner)}: `;
    for (const name of ["memoryBytes", "cpus", "pids", "timeLimitMs", "logLimitBytes"] as const) {
      const [least, most] = [quota?.default?.[name], mostOf(quota, name)];
      if (least === undefined || most === undefined || above(name, most) >= above(name, least)) continue;
      throw invalid("quota", `${whose}default-${NAMES[name]} ${least} is above the most, ${most}`);
    }
  }
}

/** No limit of a log is 0. */
function above(name: keyof Amounts, amount: number): number {
  return name === "logLimitBytes" && amount === 0 ? Infinity : amount;
}

/** Returns the most that one start may ask for: also all together have no more. */
export function mostOf({ max, sum }: Quota = {}, name: keyof Amounts): number | undefined {
  const together = name === "timeLimitMs" || name === "logLimitBytes" ? undefined : sum?.[name];
  const most = Math.min(max?.[name] ?? Infinity, together ?? Infinity);
  return most === Infinity ? undefined : most;
}
