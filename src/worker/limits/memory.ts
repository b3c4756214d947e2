import { invalid, unsupported } from "../model/errors.ts";
import type { LinuxMemory, LinuxResources } from "../model/resources.ts";
import { between, type Host, limit, type Setting, UINT64_MAX } from "./setting.ts";

/**
 * memory.swap.max limits swap alone, LinuxMemory.swap memory and swap together
 * (opencontainers/cgroups, ConvertMemorySwapToCgroupV2Value).
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
 * Settings of memory.swap.max, memory.max, memory.oom.group and memory.low. Swap is limited first: otherwise a lowered
 * memory.max would push memory into swap without a limit. checkBeforeUpdate needs no file, because a new group uses no
 * memory yet. Throws JobError `invalid`.
 */
export function memorySettings(memory: LinuxMemory): Setting[] {
  const settings: Setting[] = [];
  const set = (file: string, value: string | undefined, field: string, optional = false): void => {
    if (value === undefined) return;
    const setting = { file, value, controller: "memory", field: `resources.memory.${field}` } as const;
    settings.push(optional ? { ...setting, optional } : setting);
  };
  const swap = swapMax(memory);
  // A kernel without this file does not count swap, so 0 and no limit hold without it.
  set("memory.swap.max", swap, "swap", swap === "0" || swap === "max");
  set("memory.max", memory.limit === undefined ? undefined : limit("resources.memory.limit", memory.limit), "limit");
  // A job that runs out of memory ends as a whole: without one of its processes the others might hang.
  set("memory.oom.group", memory.limit === undefined || memory.limit === -1n ? undefined : "1", "limit");
  set(
    "memory.low",
    memory.reservation === undefined ? undefined : limit("resources.memory.reservation", memory.reservation),
    "reservation",
  );
  return settings;
}

/**
 * Settings of hugetlb.SIZE.max, which limits page faults, and hugetlb.SIZE.rsvd.max, which limits mmap (Linux 5.7).
 * Throws JobError: `unsupported` for a size that this host does not have, `invalid` for a value that is not a limit.
 */
export function hugetlbSettings(limits: NonNullable<LinuxResources["hugepageLimits"]>, host: Host): Setting[] {
  return limits.flatMap(({ pageSize, limit: bytes }, i): Setting[] => {
    const field = `resources.hugepageLimits[${i}]`;
    const sizes = host.pageSizes();
    if (!sizes.includes(pageSize))
      throw unsupported(
        `${field}.pageSize`,
        `${JSON.stringify(pageSize)} is not a size of this host's huge pages; ${sizes.join(" and ") || "it has none"}`,
      );
    const value = String(between(`${field}.limit`, bytes, 0n, UINT64_MAX, " bytes"));
    const setting = { value, controller: "hugetlb", field: `${field}.limit` } as const;
    return [
      { ...setting, file: `hugetlb.${pageSize}.max` },
      { ...setting, file: `hugetlb.${pageSize}.rsvd.max`, optional: true },
    ];
  });
}
