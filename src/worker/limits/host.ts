import { existsSync, readFileSync, readdirSync, realpathSync, statSync } from "node:fs";
import { join } from "node:path";
import type { Device, Host } from "./setting.ts";

/** What the kernel tells; `group` is the one that jobs' groups are made in, undefined where there is none. */
export function thisHost(group: string | undefined): Host {
  return {
    // Jobs' groups have what their parent has, as far as the parent is not the root of all.
    has: (file) => group !== undefined && existsSync(join(group, file)),
    pageSizes,
    allowed: (file) => (group === undefined ? undefined : read(join(group, `${file}.effective`))),
    device: deviceOf,
    disk: diskOf,
  };
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8").trim();
  } catch {
    return undefined;
  }
}

/** "hugepages-2048kB" as "2MB", which the hugetlb controller's files are called by: mem_fmt(), mm/hugetlb_cgroup.c. */
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

/** Numbers: makedev(3). */
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

/** io.max is of whole disks: for a partition the kernel refuses it (ENODEV). */
function diskOf(path: string): string | undefined {
  const of = deviceOf(path);
  if (of?.type !== "b") return undefined;
  try {
    const number = `${of.major}:${of.minor}`;
    const device = `/sys/dev/block/${number}`;
    if (!existsSync(join(device, "partition"))) return number;
    return read(join(realpathSync(device), "..", "dev"));
  } catch {
    return undefined;
  }
}
