import { reasonOf } from "../../os/errno.ts";
import { type Amounts, checkQuotas, type Quota, quotaOf, type Quotas } from "../model/quota.ts";
import type { Finding } from "./finding.ts";

/** How each amount is called, and the controller that keeps it. */
const AMOUNTS: readonly (readonly [name: keyof Amounts, called: string, controller?: string])[] = [
  ["memoryBytes", "memory", "memory"],
  ["cpus", "CPUs", "cpu"],
  ["pids", "processes", "pids"],
  ["timeLimitMs", "time"],
  ["logLimitBytes", "log"],
];

/**
 * Findings about what owners' jobs may have: those of one owner, or of all.
 *
 * @param others findings that tell which controllers are enforced
 */
export function quotaFindings(quotas: Quotas | undefined, others: readonly Finding[], owner?: string): Finding[] {
  if (quotas === undefined) return [];
  try {
    checkQuotas(quotas);
  } catch (error) {
    const remedy = "correct --quota; see docs/owners.md";
    return [
      { area: "user", name: "quota", state: "missing", meaning: "no daemon starts", reason: reasonOf(error), remedy },
    ];
  }
  const enforced = new Set(
    others.flatMap(({ area, name, state }) => (area === "controller" && state === "enforced" ? [name] : [])),
  );
  if (owner !== undefined) return rowOf(owner, quotaOf(quotas, owner), enforced);
  const own = [...(quotas.owners?.keys() ?? [])].flatMap((each) => rowOf(each, quotaOf(quotas, each), enforced));
  return [...rowOf("each", quotas.all, enforced), ...own];
}

function rowOf(name: string, quota: Quota | undefined, enforced: ReadonlySet<string>): Finding[] {
  const texts = quota ? textsOf(quota) : [];
  if (quota === undefined || texts.length === 0) return [];
  const lacking = AMOUNTS.flatMap(([amount, , controller]) =>
    controller !== undefined && isNamed(quota, amount) && !enforced.has(controller) ? [controller] : [],
  );
  const row = { area: "owner", name } as const;
  if (lacking.length === 0) return [{ ...row, state: "enforced", meaning: texts.join("; ") }];
  return [
    {
      ...row,
      state: "missing",
      meaning: `every start is refused: the quota is ${texts.join("; ")}`,
      reason: `jobs have no controller ${lacking.join(" and no ")} here`,
      remedy: "what is said of that controller, or a --quota without it",
    },
  ];
}

function isNamed({ default: first, max, sum }: Quota, name: keyof Amounts): boolean {
  return [first, max, sum].some((amounts: Amounts | undefined) => amounts?.[name] !== undefined);
}

function textsOf(quota: Quota): string[] {
  const parts = AMOUNTS.flatMap(([name, called]) => {
    const sum: Amounts = quota.sum ?? {};
    const told = [
      [quota.default?.[name], "when not asked for"],
      [quota.max?.[name], "at most"],
      [sum[name], "in all"],
    ] as const;
    const words = told.flatMap(([amount, what]) => (amount === undefined ? [] : [`${worded(name, amount)} ${what}`]));
    return words.length > 0 ? [`${called}: ${words.join(", ")}`] : [];
  });
  return quota.jobs === undefined ? parts : [...parts, `${quota.jobs} jobs at once`];
}

function worded(name: keyof Amounts, amount: number): string {
  if (name === "timeLimitMs") return `${amount / 1000} s`;
  if (name === "logLimitBytes" && amount === 0) return "no limit";
  return name === "memoryBytes" || name === "logLimitBytes" ? `${amount / 1024 ** 2} MiB` : String(amount);
}
