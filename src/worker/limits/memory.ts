import { invalid } from "../errors.ts";
import type { LinuxMemory, LinuxResources } from "../resources.ts";
import { type Host, type Setting, UINT64_MAX, between, limit, unsupported } from "./setting.ts";

/**
 * memory.swap.max is swap alone, LinuxMemory.swap is memory and swap together:
 * opencontainers/cgroups, ConvertMemorySwapToCgroupV2Value.
 */
function swapMax({ limit: memory, swap }: LinuxMemory): string | undefined {
  const field = "resources.memory.swap";
  if (swap === undefined) return undefined;
  const most = limit(field, swap);
  if (swap === -1n) return most;
  if (memory === undefined) throw invalid(field, "is memory and swap together, so it needs resources.memory.limit");
  if (memory === -1n) return most;
  if (swap < memory) throw invalid(field, `${swap} is below resources.memory.limit, which it includes`);
  return String(swap - memory);
}

/**
 * memory.swap.max, memory.max, memory.oom.group, memory.low, in this order: once memory.max is reached, what is not
 * limited yet goes to swap. checkBeforeUpdate needs no file: a job's group is new, and nothing in use in it.
 * Throws JobError `invalid`.
 */
export function memorySettings(memory: LinuxMemory): Setting[] {
  const settings: Setting[] = [];
  const set = (file: string, value: string | undefined, field: string, optional = false): void => {
    if (value === undefined) return;
    const setting = { file, value, controller: "memory", field: `resources.memory.${field}` } as const;
    settings.push(optional ? { ...setting, optional } : setting);
  };
  const swap = swapMax(memory);
  // A kernel without the file has no swap to give, or none to limit.
  set("memory.swap.max", swap, "swap", swap === "0" || swap === "max");
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

/**
 * hugetlb.SIZE.max, which a page fault runs into, and hugetlb.SIZE.rsvd.max, which mmap does (Linux 5.7).
 * Throws JobError: `unsupported` for a size that this host does not have, `invalid` for no limit.
 */
export function hugetlbSettings(limits: NonNullable<LinuxResources["hugepageLimits"]>, host: Host): Setting[] {
  return limits.flatMap(({ pageSize, limit: bytes }, i): Setting[] => {
    const field = `resources.hugepageLimits[${i}]`;
    const sizes = host.pageSizes();
    if (!sizes.includes(pageSize))
      throw unsupported(
        `${field}.pageSize`,
        `${JSON.stringify(pageSize)} is no size of this host's huge pages; ${sizes.join(" and ") || "it has none"}`,
      );
    const value = String(between(`${field}.limit`, bytes, 0n, UINT64_MAX, " bytes"));
    const setting = { value, controller: "hugetlb", field: `${field}.limit` } as const;
    return [
      { ...setting, file: `hugetlb.${pageSize}.max` },
      { ...setting, file: `hugetlb.${pageSize}.rsvd.max`, optional: true },
    ];
  });
}
