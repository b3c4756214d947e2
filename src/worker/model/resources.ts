import { invalid } from "./errors.ts";

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
