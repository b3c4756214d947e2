import { existsSync, readdirSync, realpathSync, statSync } from "node:fs";
import { join } from "node:path";
import { contentOf } from "../../os/proc.ts";
import type { Device, Host } from "./setting.ts";

/** This host, as its kernel describes it. `group` is the parent of jobs' groups; undefined without cgroup v2. */
export function thisHost(group: string | undefined): Host {
  return {
    // A job's group has the files of its parent, which is never the root group.
    has: (file) => group !== undefined && existsSync(join(group, file)),
    pageSizes,
    allowed: (file) => (group === undefined ? undefined : contentOf(join(group, `${file}.effective`))),
    device: deviceOf,
    disk: diskOf,
  };
}

/** Sizes as the hugetlb controller's files are named: "2MB" for "hugepages-2048kB" (mem_fmt(), mm/hugetlb_cgroup.c). */
function pageSizes(): string[] {
  try {
    return readdirSync("/sys/kernel/mm/hugepages").map((name) => {
      const kib = Number(/\d+/.exec(name)?.[0]);
      return kib >= 1024 ** 2 ? `${kib / 1024 ** 2}GB` : kib >= 1024 ? `${kib / 1024}MB` : `${kib}KB`;
    });
  } catch {
    return [];
  }
}

/** Splits a device's number as makedev(3) joins it. */
function deviceOf(path: string): Device | undefined {
  try {
    const status = statSync(path, { bigint: true });
    const type = status.isBlockDevice() ? "b" : status.isCharacterDevice() ? "c" : undefined;
    if (!path.startsWith("/") || type === undefined) return undefined;
    const { rdev } = status;
    const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & ~0xfffn);
    return { type, major, minor: (rdev & 0xffn) | ((rdev >> 12n) & ~0xffn) };
  } catch {
    return undefined;
  }
}

/** io.max takes whole disks: the kernel refuses a partition (ENODEV). */
function diskOf(path: string): string | undefined {
  const of = deviceOf(path);
  if (of?.type !== "b") return undefined;
  try {
    const number = `${of.major}:${of.minor}`;
    const device = `/sys/dev/block/${number}`;
    if (!existsSync(join(device, "partition"))) return number;
    return contentOf(join(realpathSync(device), "..", "dev"));
  } catch {
    return undefined;
  }
}
