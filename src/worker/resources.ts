import { JobError, invalid } from "./errors.ts";

/**
 * LinuxResources of the OCI runtime specification 1.3, under its own names
 * (github.com/opencontainers/runtime-spec, config-linux.md and specs-go/config.go).
 * 64-bit quantities are bigints; absent and zero differ.
 */
export interface LinuxResources {
  readonly devices?: readonly LinuxDeviceCgroup[];
  readonly memory?: LinuxMemory;
  readonly cpu?: LinuxCpu;
  readonly pids?: { readonly limit?: bigint };
  readonly blockIO?: LinuxBlockIO;
  readonly hugepageLimits?: readonly { readonly pageSize: string; readonly limit: bigint }[];
  readonly network?: {
    readonly classID?: number;
    readonly priorities?: readonly { readonly name: string; readonly priority: number }[];
  };
  readonly rdma?: Readonly<Record<string, { readonly hcaHandles?: number; readonly hcaObjects?: number }>>;
  readonly unified?: Readonly<Record<string, string>>;
}

export interface LinuxDeviceCgroup {
  readonly allow: boolean;
  readonly type?: string;
  readonly major?: bigint;
  readonly minor?: bigint;
  readonly access?: string;
}

/** Bytes, but for swappiness (0 to 100). */
export interface LinuxMemory {
  readonly limit?: bigint;
  readonly reservation?: bigint;
  /** Memory and swap together. */
  readonly swap?: bigint;
  readonly kernel?: bigint;
  readonly kernelTCP?: bigint;
  readonly swappiness?: bigint;
  readonly disableOOMKiller?: boolean;
  readonly useHierarchy?: boolean;
  readonly checkBeforeUpdate?: boolean;
}

/** Times in microseconds. */
export interface LinuxCpu {
  readonly shares?: bigint;
  readonly quota?: bigint;
  readonly burst?: bigint;
  readonly period?: bigint;
  readonly realtimeRuntime?: bigint;
  readonly realtimePeriod?: bigint;
  readonly cpus?: string;
  readonly mems?: string;
  readonly idle?: bigint;
}

export interface LinuxBlockIO {
  readonly weight?: number;
  readonly leafWeight?: number;
  readonly weightDevice?: readonly LinuxWeightDevice[];
  readonly throttleReadBpsDevice?: readonly LinuxThrottleDevice[];
  readonly throttleWriteBpsDevice?: readonly LinuxThrottleDevice[];
  readonly throttleReadIOPSDevice?: readonly LinuxThrottleDevice[];
  readonly throttleWriteIOPSDevice?: readonly LinuxThrottleDevice[];
}

export interface LinuxWeightDevice {
  readonly major: bigint;
  readonly minor: bigint;
  readonly weight?: number;
  readonly leafWeight?: number;
}

export interface LinuxThrottleDevice {
  readonly major: bigint;
  readonly minor: bigint;
  readonly rate: bigint;
}

/** A cgroup v2 file, what to write in it, the controller that has it, and the field that asked for it. */
export interface Setting {
  readonly file: string;
  readonly value: string;
  readonly controller: "cpu" | "memory" | "pids";
  readonly field: string;
}

const INT64_MAX = 2n ** 63n - 1n;
const PIDS_MAX = 4_194_304n; // PID_MAX_LIMIT, include/linux/threads.h
const QUOTA_MAX = 2n ** 44n - 1n; // MAX_BW, kernel/sched/sched.h: beyond it older kernels overflow, newer ones refuse

function limit(field: string, value: bigint, most = INT64_MAX): string {
  if (value === -1n) return "max";
  if (value < 1n) throw invalid(field, `${value} is no limit; give more than 0, or -1 for none`);
  if (value > most)
    throw invalid(field, `${value} is more than ${most}, the most that the kernel takes; give -1 for no limit`);
  return String(value);
}

function between(field: string, value: bigint, least: bigint, most: bigint, unit: string): bigint {
  if (value < least || value > most) throw invalid(field, `${value} is not between ${least} and ${most}${unit}`);
  return value;
}

/**
 * cpu.shares (2 to 262144) as cpu.weight (1 to 10000), so that 1024 is 100:
 * opencontainers/cgroups, ConvertCPUSharesToCgroupV2Value.
 */
export function cpuWeight(shares: bigint): bigint {
  if (shares <= 2n) return 1n;
  if (shares >= 262144n) return 10000n;
  const l = Math.log2(Number(shares));
  return BigInt(Math.ceil(10 ** ((l * l + 125 * l) / 612 - 7 / 34)));
}

function cpuSettings(cpu: LinuxCpu): Setting[] {
  const settings: Setting[] = [];
  const { shares, quota, period } = cpu;
  const set = (file: string, value: string, field: string): void => {
    settings.push({ file, value, controller: "cpu", field: `resources.cpu.${field}` });
  };
  if (shares !== undefined)
    set("cpu.weight", String(cpuWeight(between("resources.cpu.shares", shares, 2n, 262144n, ""))), "shares");
  if (period !== undefined) between("resources.cpu.period", period, 1000n, 1_000_000n, " µs");
  if (quota !== undefined && quota !== -1n && quota < 1000n)
    throw invalid("resources.cpu.quota", `${quota} µs is no quota; give at least 1000, or -1 for none`);
  if (quota !== undefined || period !== undefined)
    set(
      "cpu.max",
      `${limit("resources.cpu.quota", quota ?? -1n, QUOTA_MAX)} ${period ?? 100_000n}`,
      quota === undefined ? "period" : "quota",
    );
  return settings;
}

/** memory.swap.max is swap alone, LinuxMemory.swap is memory and swap together. */
function swapMax(memory: LinuxMemory): string | undefined {
  const field = "resources.memory.swap";
  const { swap } = memory;
  if (swap === undefined) return undefined;
  limit(field, swap);
  if (swap === -1n) return "max";
  if (memory.limit === undefined)
    throw invalid(field, "is memory and swap together, so it needs resources.memory.limit");
  if (memory.limit === -1n) return String(swap);
  if (swap < memory.limit) throw invalid(field, `${swap} is below resources.memory.limit, which it includes`);
  return String(swap - memory.limit);
}

function memorySettings(memory: LinuxMemory): Setting[] {
  const settings: Setting[] = [];
  const set = (file: string, value: string | undefined, field: string): void => {
    if (value !== undefined) settings.push({ file, value, controller: "memory", field: `resources.memory.${field}` });
  };
  set("memory.swap.max", swapMax(memory), "swap");
  set("memory.max", memory.limit === undefined ? undefined : limit("resources.memory.limit", memory.limit), "limit");
  // A job is one thing: when it runs out of memory, all of it ends, not a child that the rest then misses.
  set("memory.oom.group", memory.limit === undefined || memory.limit === -1n ? undefined : "1", "limit");
  set(
    "memory.low",
    memory.reservation === undefined ? undefined : limit("resources.memory.reservation", memory.reservation),
    "reservation",
  );
  return settings;
}

const SUPPORTED: Readonly<Record<string, readonly string[]>> = {
  cpu: ["shares", "quota", "period"],
  memory: ["limit", "reservation", "swap"],
  pids: ["limit"],
};

function present(value: unknown): boolean {
  return value !== undefined && !(typeof value === "object" && value !== null && Object.keys(value).length === 0);
}

function refuseTheRest(resources: LinuxResources): void {
  for (const [group, value] of Object.entries(resources)) {
    if (!present(value)) continue;
    const supported = SUPPORTED[group];
    const refused =
      supported === undefined ? "" : Object.keys(value).find((key) => !supported.includes(key) && present(value[key]));
    if (refused === undefined) continue;
    const field = `resources.${group}${refused && `.${refused}`}`;
    throw new JobError(
      "unsupported",
      `${field}: not supported; cpu.{shares,quota,period}, memory.{limit,reservation,swap} and pids.limit are`,
      { field },
    );
  }
}

/**
 * The cgroup v2 files to write for `resources`, in order (rules: opencontainers/cgroups, fs2).
 * Throws JobError: `invalid` for a value out of range, `unsupported` for a field that is not converted.
 */
export function settingsOf(resources: LinuxResources): Setting[] {
  refuseTheRest(resources);
  const pids = resources.pids?.limit;
  return [
    ...(pids === undefined
      ? []
      : [
          {
            file: "pids.max",
            value: limit("resources.pids.limit", pids, PIDS_MAX),
            controller: "pids",
            field: "resources.pids.limit",
          } as const,
        ]),
    ...(resources.memory ? memorySettings(resources.memory) : []),
    ...(resources.cpu ? cpuSettings(resources.cpu) : []),
  ];
}
