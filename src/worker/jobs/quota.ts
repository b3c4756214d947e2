import type { Hierarchy } from "../cgroup/hierarchy.ts";
import type { Setting } from "../limits/setting.ts";
import { invalid, JobError, quoted } from "../model/errors.ts";
import type { JobSpec } from "../model/job.ts";
import { mostOf, type Quota, quotaOf } from "../model/quota.ts";
import type { LinuxResources } from "../model/resources.ts";
import type { Context } from "./context.ts";
import { checkSettings } from "./enforceable.ts";

/* What an owner's quota makes of a start or an update, and what it refuses. */

const PERIOD_US = 100_000n;
/** The kernel's least, as in cpuSettings(). */
const LEAST_QUOTA_US = 1000;

/** Returns the start with the quota's defaults in the place of what it does not ask for. */
export function withDefaults(spec: JobSpec, quota: Quota): JobSpec {
  const { default: first = {}, max = {} } = quota;
  const timeLimitMs = spec.timeLimitMs ?? first.timeLimitMs ?? max.timeLimitMs;
  const resources = withDefaultLimits(spec.resources ?? {}, { ...max, ...first });
  return {
    ...spec,
    ...(timeLimitMs !== undefined && { timeLimitMs }),
    ...((spec.resources || Object.keys(resources).length > 0) && { resources }),
  };
}

/** A limit that is asked for by its file's name has no default. */
function withDefaultLimits(
  resources: LinuxResources,
  { memoryBytes, cpus, pids }: NonNullable<Quota["default"]>,
): LinuxResources {
  const { memory, cpu, pids: asked, unified = {} } = resources;
  const period = cpu?.period ?? PERIOD_US;
  const lacks = (value: bigint | undefined, file: string): boolean =>
    value === undefined && !Object.hasOwn(unified, file);
  return {
    ...resources,
    ...(memoryBytes !== undefined &&
      lacks(memory?.limit, "memory.max") && { memory: { ...memory, limit: BigInt(memoryBytes) } }),
    ...(cpus !== undefined &&
      lacks(cpu?.quota, "cpu.max") && { cpu: { ...cpu, period, quota: quotaUs(cpus, period) } }),
    ...(pids !== undefined && lacks(asked?.limit, "pids.max") && { pids: { limit: BigInt(pids) } }),
  };
}

function quotaUs(cpus: number, period: bigint): bigint {
  return BigInt(Math.max(LEAST_QUOTA_US, Math.round(cpus * Number(period))));
}

/**
 * Refuses settings above the most of the owner's quota, and those of the same files that cannot be compared with it. Throws
 * JobError `invalid` with the facts `field`, `maximum` and `asked`.
 *
 * @param inGroup the job is in its owner's group, so that what all have together limits it as well
 */
export function checkMost(settings: readonly Setting[], owner: string, quota: Quota, inGroup: boolean): void {
  for (const { file, value, field } of settings) {
    const [name, key] = LIMITED.get(file) ?? [];
    const most = name === undefined ? undefined : mostOf(quota, name);
    if (name === undefined || key === undefined || most === undefined) continue;
    const asked = amountIn(file, value);
    if (asked === undefined)
      throw invalid(field, `${quoted(value)} is not plain enough to compare with this worker's maximum`);
    const free = inGroup && asked === Infinity && quota.max?.[name] === undefined;
    const kind = most === quota.max?.[name] ? "max" : "sum";
    if (asked > most && !free) throw tooMuch({ field, key: `${kind}-${key}`, owner }, asked, most);
  }
}

const LIMITED = new Map([
  ["memory.max", ["memoryBytes", "memory"]],
  ["cpu.max", ["cpus", "cpus"]],
  ["pids.max", ["pids", "pids"]],
] as const) as ReadonlyMap<string, readonly ["memoryBytes" | "cpus" | "pids", string]>;

/** Returns the amount that a line of a file allows, Infinity for all; undefined for what only the kernel understands. */
function amountIn(file: string, value: string): number | undefined {
  const [, amount, period] = /^(max|\d{1,19})(?: (\d{1,7}))?$/.exec(value) ?? [];
  if (amount === undefined || (file === "cpu.max") !== (period !== undefined)) return undefined;
  return amount === "max" ? Infinity : Number(amount) / Number(period ?? 1);
}

/** Refuses a time limit above the most of the owner's quota, as checkMost(). */
export function checkTimeLimit({ timeLimitMs, owner }: JobSpec, quota: Quota): void {
  const most = mostOf(quota, "timeLimitMs");
  if (most === undefined || timeLimitMs === undefined || timeLimitMs <= most) return;
  throw tooMuch({ field: "time_limit", key: "max-time-limit", owner }, `${timeLimitMs / 1000}s`, `${most / 1000}s`);
}

function tooMuch(
  { field, key, owner }: { readonly field: string; readonly key: string; readonly owner: string },
  asked: number | string,
  most: number | string,
): JobError {
  const [asks, maximum] = [asked === Infinity ? "no limit" : String(asked), String(most)];
  const whose = `${maximum} is the most for a job of ${quoted(owner)} (jobsd --quota, ${key})`;
  return invalid(field, `${asks} is too much: ${whose}`, { field, maximum, asked: asks });
}

/** Refuses a start of an owner who has as many jobs as the quota allows. Throws JobError `exhausted`. */
export function checkJobs({ tracked }: Context, owner: string, { jobs }: Quota): void {
  if (jobs === undefined) return;
  let count = 0;
  for (const { job } of tracked.values()) if (job.owner === owner) count++;
  if (count < jobs) return;
  throw new JobError(
    "exhausted",
    `${quoted(owner)} has ${count} jobs that have not ended, and ${jobs} is the most (jobsd --quota, jobs)`,
    { facts: { field: "jobs", maximum: String(jobs) } },
  );
}

/** Throws JobError `unsupported` where jobs have no controller that the quota needs, whatever the start asks for. */
export function checkKept({ default: first, max, sum }: Quota, hierarchy: Hierarchy): void {
  const controllers = { memoryBytes: "memory", cpus: "cpu", pids: "pids" } as const;
  const needed = (["memoryBytes", "cpus", "pids"] as const).filter((name) =>
    [first, max, sum].some((amounts) => amounts?.[name] !== undefined),
  );
  for (const name of needed) {
    const controller = controllers[name];
    checkSettings([{ file: `${controller}.max`, value: "", controller, field: `quota of ${controller}` }], hierarchy);
  }
}

/** Returns the settings of an owner's group, which has all jobs of the owner in it; none where they share no limit. */
export function sumSettings({ sum = {} }: Quota): Setting[] {
  const { memoryBytes, cpus, pids } = sum;
  const line = (controller: "memory" | "cpu" | "pids", key: string, value: string): Setting[] => [
    { file: `${controller}.max`, value, controller, field: `quota sum-${key}` },
  ];
  return [
    ...(memoryBytes === undefined ? [] : line("memory", "memory", String(memoryBytes))),
    ...(cpus === undefined ? [] : line("cpu", "cpus", `${quotaUs(cpus, PERIOD_US)} ${PERIOD_US}`)),
    ...(pids === undefined ? [] : line("pids", "pids", String(pids))),
  ];
}

/** Returns the settings of a job whose owner's jobs share memory: without memory, one of them ends as a whole. */
export function sharedSettings({ sum }: Quota): Setting[] {
  if (sum?.memoryBytes === undefined) return [];
  return [{ file: "memory.oom.group", value: "1", controller: "memory", field: "quota sum-memory" }];
}

/** The quota of an owner at this worker; undefined where there is none. */
export function quotaHere({ options }: Context, owner: string): Quota | undefined {
  return options.quotas && quotaOf(options.quotas, owner);
}
