import { invalid, quoted, unsupported } from "../model/errors.ts";
import type { LinuxCpu } from "../model/resources.ts";
import { between, type Host, limit, type Setting } from "./setting.ts";

const PERIOD_US = 100_000n; // the kernel's own default
const QUOTA_MAX_US = 2n ** 44n - 1n; // MAX_BW, kernel/sched/sched.h: above it older kernels overflow, newer ones refuse

/**
 * Converts cpu.shares (2 to 262144) to cpu.weight (1 to 10000), so that 1024 becomes 100
 * (opencontainers/cgroups, ConvertCPUSharesToCgroupV2Value).
 */
export function cpuWeight(shares: bigint): bigint {
  if (shares <= 2n) return 1n;
  if (shares >= 262144n) return 10000n;
  const l = Math.log2(Number(shares));
  return BigInt(Math.ceil(10 ** ((l * l + 125 * l) / 612 - 7 / 34)));
}

/** Settings of cpu.idle, cpu.weight, cpu.max and cpu.max.burst. Throws JobError `invalid`. */
export function cpuSettings({ shares, quota, period, burst, idle }: LinuxCpu): Setting[] {
  const settings: Setting[] = [];
  const set = (file: string, value: bigint | string, field: string): void => {
    settings.push({ file, value: String(value), controller: "cpu", field: `resources.cpu.${field}` });
  };
  if (idle !== undefined) set("cpu.idle", between("resources.cpu.idle", idle, 0n, 1n), "idle");
  if (shares !== undefined) between("resources.cpu.shares", shares, 2n, 262144n);
  // The kernel refuses to write the weight of an idle group (EINVAL).
  if (shares !== undefined && idle !== 1n) set("cpu.weight", cpuWeight(shares), "shares");
  if (period !== undefined) between("resources.cpu.period", period, 1000n, 1_000_000n, " µs");
  if (quota !== undefined && quota !== -1n && quota < 1000n)
    throw invalid("resources.cpu.quota", `${quota} µs is not a quota; give at least 1000, or -1 for none`);
  if (quota !== undefined || period !== undefined)
    set(
      "cpu.max",
      `${limit("resources.cpu.quota", quota ?? -1n, QUOTA_MAX_US)} ${period ?? PERIOD_US}`,
      quota === undefined ? "period" : "quota",
    );
  // The burst may not exceed the quota, and a new group has no quota: so the quota is written first.
  if (burst !== undefined) set("cpu.max.burst", checkBurst(burst, quota ?? -1n), "burst");
  return settings;
}

/** Keeps the kernel's rule (tg_set_cfs_bandwidth): a burst is at most the quota, and both together at most MAX_BW. */
function checkBurst(burst: bigint, quota: bigint): bigint {
  const field = "resources.cpu.burst";
  if (quota !== -1n && burst > quota) throw invalid(field, `${burst} µs is more than resources.cpu.quota`);
  return between(field, burst, 0n, quota === -1n ? QUOTA_MAX_US : QUOTA_MAX_US - quota, " µs");
}

/** Settings of cpuset.cpus and cpuset.mems. Throws JobError: `invalid` for what is not a list, `unsupported` for what this host lacks. */
export function cpusetSettings({ cpus, mems }: LinuxCpu, host: Host): Setting[] {
  const set = (name: "cpus" | "mems", list: string | undefined): Setting[] => {
    if (list === undefined) return [];
    const [file, field] = [`cpuset.${name}` as const, `resources.cpu.${name}`];
    const asked = ranges(list);
    if (!asked) throw invalid(field, `${quoted(list)} is not a list of numbers, such as 0, 0-3 or 0-2,7`);
    const allowed = host.allowed(file);
    // The kernel accepts a CPU that does not exist, and then lets the job run on every CPU of its parent.
    const there = allowed === undefined ? asked : (ranges(allowed) ?? []);
    if (!asked.every(([from, to]) => there.some(([first, last]) => from >= first && to <= last)))
      throw unsupported(field, `${list} is not within ${allowed}, which jobs of this worker may be given`);
    return [{ file, value: list, controller: "cpuset", field }];
  };
  return [...set("cpus", cpus), ...set("mems", mems)];
}

/** Parses "0-2,7" into [[0, 2], [7, 7]]; undefined when `list` is not in the list format of cpuset(7). */
function ranges(list: string): (readonly [number, number])[] | undefined {
  if (!/^\d{1,7}(-\d{1,7})?(,\d{1,7}(-\d{1,7})?)*$/.test(list)) return undefined;
  const all = list.split(",").map((range) => {
    const [from = "", to = from] = range.split("-");
    return [Number(from), Number(to)] as const;
  });
  return all.every(([from, to]) => from <= to) ? all : undefined;
}
