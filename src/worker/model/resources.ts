import { invalid } from "./errors.ts";
import { bigint, type Check, listOf, recordOf, shape, text, truth, whole } from "./shape.ts";

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

/** A rule for devices. An absent part matches any; so does a number of -1. */
export interface LinuxDeviceCgroup {
  readonly allow: boolean;
  readonly type?: string;
  readonly major?: bigint;
  readonly minor?: bigint;
  readonly access?: string;
  /** A path on the worker, instead of type and numbers. OCI does not have this field. */
  readonly path?: string;
}

/** Limits in bytes; swappiness is 0 to 100. */
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

/** A device by its number; or by its path on the worker, and then both numbers are 0. */
interface LinuxBlockDevice {
  readonly major: bigint;
  readonly minor: bigint;
  /** OCI does not have this field. */
  readonly path?: string;
}

export interface LinuxWeightDevice extends LinuxBlockDevice {
  readonly weight?: number;
  readonly leafWeight?: number;
}

export interface LinuxThrottleDevice extends LinuxBlockDevice {
  readonly rate: bigint;
}

/** The most entries of a list or map in a request, and of the limits in a record; and the longest text in them. */
export const MAX_ENTRIES = 256;
const MAX_TEXT_LENGTH = 4096;

/** Refuses more than any host needs, because it would be in every list of jobs. Throws JobError `invalid`. */
export function checkSizes(field: string, value: unknown): void {
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

const device = { path: text, major: bigint, minor: bigint };
const open = { open: true };
const weights = listOf(
  shape<LinuxWeightDevice>({ ...device, weight: whole, leafWeight: whole }, ["major", "minor"], open),
);
const rates = listOf(shape<LinuxThrottleDevice>({ ...device, rate: bigint }, ["major", "minor", "rate"], open));

/** Throws JobError `invalid` where a field has another type. One that is not known is left to limits/, which knows why. */
export const checkResources: Check = shape<LinuxResources>(
  {
    devices: listOf(shape<LinuxDeviceCgroup>({ ...device, allow: truth, type: text, access: text }, ["allow"], open)),
    memory: shape<LinuxMemory>(
      {
        limit: bigint,
        reservation: bigint,
        swap: bigint,
        kernel: bigint,
        kernelTCP: bigint,
        swappiness: bigint,
        disableOOMKiller: truth,
        useHierarchy: truth,
        checkBeforeUpdate: truth,
      },
      [],
      open,
    ),
    cpu: shape<LinuxCpu>(
      {
        shares: bigint,
        quota: bigint,
        burst: bigint,
        period: bigint,
        realtimeRuntime: bigint,
        realtimePeriod: bigint,
        cpus: text,
        mems: text,
        idle: bigint,
      },
      [],
      open,
    ),
    pids: shape<NonNullable<LinuxResources["pids"]>>({ limit: bigint }, [], open),
    blockIO: shape<LinuxBlockIO>(
      {
        weight: whole,
        leafWeight: whole,
        weightDevice: weights,
        throttleReadBpsDevice: rates,
        throttleWriteBpsDevice: rates,
        throttleReadIOPSDevice: rates,
        throttleWriteIOPSDevice: rates,
      },
      [],
      open,
    ),
    hugepageLimits: listOf(
      shape<{ pageSize: string; limit: bigint }>({ pageSize: text, limit: bigint }, ["pageSize", "limit"], open),
    ),
    network: shape<NonNullable<LinuxResources["network"]>>(
      {
        classID: whole,
        priorities: listOf(
          shape<{ name: string; priority: number }>({ name: text, priority: whole }, ["name", "priority"], open),
        ),
      },
      [],
      open,
    ),
    rdma: recordOf(
      shape<{ hcaHandles?: number; hcaObjects?: number }>({ hcaHandles: whole, hcaObjects: whole }, [], open),
    ),
    unified: recordOf(text),
  },
  [],
  open,
);
