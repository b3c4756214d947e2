import { invalid } from "../model/errors.ts";

/** The controllers of cgroup v2 that limit or measure jobs. */
export const CONTROLLERS = ["cpu", "memory", "pids", "io", "cpuset", "hugetlb", "rdma", "misc"] as const;
export type Controller = (typeof CONTROLLERS)[number];

/** A value for a cgroup v2 file, the controller that owns the file, and the request's field that asked for the value. */
export interface Setting {
  readonly file: string;
  readonly value: string;
  readonly controller: Controller;
  readonly field: string;
  /** The limit holds on a kernel without this file, too. */
  readonly optional?: true;
}

export interface Device {
  readonly type: "b" | "c";
  readonly major: bigint;
  readonly minor: bigint;
}

/** What converting limits needs to know of the host. Each function is called only for limits that need its answer. */
export interface Host {
  /** Whether a job's group will have a cgroup file. */
  has(file: string): boolean;
  /** Sizes of huge pages, as the kernel names them: "2MB", "1GB". */
  pageSizes(): readonly string[];
  /** CPUs or memory nodes that jobs may be given, as in "0-3,7"; undefined when the kernel does not tell. */
  allowed(file: "cpuset.cpus" | "cpuset.mems"): string | undefined;
  /** The type and number of the device at `path`; undefined when there is no device. */
  device(path: string): Device | undefined;
  /** `MAJ:MIN` of the block device at `path`, or of the whole disk of a partition; undefined when there is no block device. */
  disk(path: string): string | undefined;
}

export const MAJOR_MAX = 2n ** 12n - 1n; // 12 and 20 bits: include/linux/kdev_t.h
export const MINOR_MAX = 2n ** 20n - 1n;
const INT64_MAX = 2n ** 63n - 1n;
export const UINT64_MAX = 2n ** 64n - 1n;

/** A limit as the kernel reads it: "max" for -1. Throws `invalid` for a value that is not a limit. */
export function limit(field: string, value: bigint, most = INT64_MAX): string {
  if (value === -1n) return "max";
  if (value < 1n) throw invalid(field, `${value} is not a limit; give more than 0, or -1 for none`);
  if (value > most)
    throw invalid(field, `${value} is more than ${most}, the most that the kernel accepts; give -1 for no limit`);
  return String(value);
}

/** Returns `value`. Throws `invalid` when that is not within `least` and `most`. */
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
