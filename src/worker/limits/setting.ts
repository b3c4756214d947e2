import { JobError, invalid } from "../errors.ts";

/** Controllers of cgroup v2 that jobs are limited or measured by. */
export const CONTROLLERS = ["cpu", "memory", "pids", "io", "cpuset", "hugetlb", "rdma", "misc"] as const;
export type Controller = (typeof CONTROLLERS)[number];

/** A cgroup v2 file, what to write in it, the controller that has it, and the field that asked for it. */
export interface Setting {
  readonly file: string;
  readonly value: string;
  readonly controller: Controller;
  readonly field: string;
  /** A kernel that has no such file keeps the limit without it. */
  readonly optional?: true;
}

export interface Device {
  readonly type: "b" | "c";
  readonly major: bigint;
  readonly minor: bigint;
}

/** What the conversion needs to know of the host; asked only for what a job's limits name. */
export interface Host {
  /** Whether a job's group will have a cgroup file. */
  has(file: string): boolean;
  /** Sizes of huge pages, as the kernel names them: "2MB", "1GB". */
  pageSizes(): readonly string[];
  /** CPUs or memory nodes that jobs may be given, as in "0-3,7"; undefined where the kernel does not tell. */
  allowed(file: "cpuset.cpus" | "cpuset.mems"): string | undefined;
  /** A device's path as what the kernel knows it by; undefined where it is none. */
  device(path: string): Device | undefined;
  /** `MAJ:MIN` of a block device's path, of the whole disk where it is a partition; undefined where it is none. */
  disk(path: string): string | undefined;
}

export const MAJOR_MAX = 2n ** 12n - 1n; // 12 and 20 bits: include/linux/kdev_t.h
export const MINOR_MAX = 2n ** 20n - 1n;
export const INT64_MAX = 2n ** 63n - 1n;
export const UINT64_MAX = 2n ** 64n - 1n;

/** A limit as the kernel reads it: "max" for -1. Throws `invalid` for one that is none. */
export function limit(field: string, value: bigint, most = INT64_MAX): string {
  if (value === -1n) return "max";
  if (value < 1n) throw invalid(field, `${value} is no limit; give more than 0, or -1 for none`);
  if (value > most)
    throw invalid(field, `${value} is more than ${most}, the most that the kernel takes; give -1 for no limit`);
  return String(value);
}

/** The value itself. Throws `invalid` when it is out of its range. */
export function between<Value extends bigint | number>(
  field: string,
  value: Value,
  least: Value,
  most: Value,
  unit = "",
): Value {
  if (value >= least && value <= most && (typeof value === "bigint" || Number.isInteger(value))) return value;
  throw invalid(field, `${value} is not between ${least} and ${most}${unit}`);
}

export function unsupported(field: string, message: string): JobError {
  return new JobError("unsupported", `${field}: ${message}`, { field });
}
