import { cpuSettings, cpusetSettings } from "./limits/cpu.ts";
import { ioSettings } from "./limits/io.ts";
import { hugetlbSettings, memorySettings } from "./limits/memory.ts";
import { type Host, type Setting, limit, unsupported } from "./limits/setting.ts";
import { invalid } from "./errors.ts";
import { rdmaSettings, unifiedSettings } from "./limits/unified.ts";

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

/** An absent part is any. -1 is any number, too. */
export interface LinuxDeviceCgroup {
  readonly allow: boolean;
  readonly type?: string;
  readonly major?: bigint;
  readonly minor?: bigint;
  readonly access?: string;
  /** On the worker, instead of type and numbers. Not of OCI's. */
  readonly path?: string;
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

/** A device by its number, or by its path on the worker with both numbers 0. */
interface LinuxBlockDevice {
  readonly major: bigint;
  readonly minor: bigint;
  /** Not of OCI's. */
  readonly path?: string;
}

export interface LinuxWeightDevice extends LinuxBlockDevice {
  readonly weight?: number;
  readonly leafWeight?: number;
}

export interface LinuxThrottleDevice extends LinuxBlockDevice {
  readonly rate: bigint;
}

/** Of each list and map of a request, and of what is told of limits; and the length of each text in them. */
export const MAX_ENTRIES = 256;
const MAX_TEXT_LENGTH = 4096;

/** What no host has so many of would be in every list of jobs. Throws JobError `invalid`. */
function checkSizes(field: string, value: unknown): void {
  if (typeof value === "string" && value.length > MAX_TEXT_LENGTH)
    throw invalid(field, `is longer than ${MAX_TEXT_LENGTH} characters`);
  if (typeof value !== "object" || value === null) return;
  const entries = Object.entries(value);
  if (entries.length > MAX_ENTRIES) throw invalid(field, `has ${entries.length} entries; ${MAX_ENTRIES} is the most`);
  for (const [name, each] of entries) {
    if (name.length > MAX_TEXT_LENGTH) throw invalid(field, `has a name of more than ${MAX_TEXT_LENGTH} characters`);
    checkSizes(Array.isArray(value) ? `${field}[${name}]` : `${field}.${name}`, each);
  }
}

const PIDS_MAX = 4_194_304n; // PID_MAX_LIMIT, include/linux/threads.h

/** Fields that are converted; the whole group where it has none of its own. */
const CONVERTED: Readonly<Record<string, readonly string[]>> = {
  pids: ["limit"],
  memory: ["limit", "reservation", "swap", "checkBeforeUpdate"],
  blockIO: [
    "weight",
    "weightDevice",
    "throttleReadBpsDevice",
    "throttleWriteBpsDevice",
    "throttleReadIOPSDevice",
    "throttleWriteIOPSDevice",
  ],
  cpu: ["shares", "quota", "period", "burst", "idle", "cpus", "mems"],
};
const WHOLE: ReadonlySet<string> = new Set(["devices", "hugepageLimits", "rdma", "unified"]);
/** Of cgroup v1. */
const NO_FILE: Readonly<Record<string, readonly string[]>> = {
  memory: ["kernel", "kernelTCP", "swappiness", "disableOOMKiller", "useHierarchy"],
  blockIO: ["leafWeight"],
  cpu: ["realtimeRuntime", "realtimePeriod"],
  network: ["classID", "priorities"],
};

function present(value: unknown): boolean {
  return value !== undefined && !(typeof value === "object" && value !== null && Object.keys(value).length === 0);
}

function refuseTheRest(resources: LinuxResources): void {
  for (const [group, value] of Object.entries(resources)) {
    if (!present(value) || WHOLE.has(group)) continue;
    if (!(group in CONVERTED) && !(group in NO_FILE)) throw unsupported(`resources.${group}`, "not supported");
    for (const key of Object.keys(value)) {
      if (!present(value[key]) || CONVERTED[group]?.includes(key)) continue;
      const why = NO_FILE[group]?.includes(key) ? "cgroup v2 has no file for it" : "not supported";
      throw unsupported(`resources.${group}.${key}`, why);
    }
  }
}

function pidsSettings(asked: bigint | undefined): Setting[] {
  if (asked === undefined) return [];
  // A group of none could not hold the job itself: 0 is for one that may not fork, as opencontainers/cgroups has it.
  const value = asked === 0n ? "1" : limit("resources.pids.limit", asked, PIDS_MAX);
  return [{ file: "pids.max", value, controller: "pids", field: "resources.pids.limit" }];
}

/**
 * The cgroup v2 files to write for `resources`, in order; rules and order are those of opencontainers/cgroups, fs2,
 * where docs/limits.md says no other. Of `devices` there is a program and no file: limits/devices.ts. Throws JobError:
 * `invalid` for a value out of range, `unsupported` for what cgroup v2 or this host does not have.
 */
export function settingsOf(resources: LinuxResources, host: Host): Setting[] {
  checkSizes("resources", resources);
  refuseTheRest(resources);
  const { pids, memory, blockIO, cpu, hugepageLimits, rdma, unified } = resources;
  return [
    ...pidsSettings(pids?.limit),
    ...(memory ? memorySettings(memory) : []),
    ...(blockIO ? ioSettings(blockIO, host) : []),
    ...(cpu ? cpuSettings(cpu) : []),
    ...(cpu ? cpusetSettings(cpu, host) : []),
    ...hugetlbSettings(hugepageLimits ?? [], host),
    ...rdmaSettings(rdma ?? {}),
    // Last, so that what is asked for by the file's own name holds.
    ...unifiedSettings(unified ?? {}),
  ];
}
