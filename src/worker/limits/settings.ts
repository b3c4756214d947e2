import { unsupported } from "../model/errors.ts";
import { checkSizes, type LinuxResources } from "../model/resources.ts";
import { cpusetSettings, cpuSettings } from "./cpu.ts";
import { ioSettings, THROTTLES } from "./io.ts";
import { hugetlbSettings, memorySettings } from "./memory.ts";
import { pidsSettings } from "./pids.ts";
import type { Host, Setting } from "./setting.ts";
import { rdmaSettings, unifiedSettings } from "./unified.ts";

/** The fields of each group that are converted. */
const CONVERTED: Readonly<Record<string, readonly string[]>> = {
  pids: ["limit"],
  memory: ["limit", "reservation", "swap", "checkBeforeUpdate"],
  blockIO: ["weight", "weightDevice", ...THROTTLES.map(([name]) => name)],
  cpu: ["shares", "quota", "period", "burst", "idle", "cpus", "mems"],
};
const WHOLE: ReadonlySet<string> = new Set(["devices", "hugepageLimits", "rdma", "unified"]);
/** The fields that only cgroup v1 has files for. */
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

/**
 * The cgroup v2 files to write for `resources`, in order. Rules and order are those of opencontainers/cgroups, fs2, unless
 * docs/limits.md says otherwise. `devices` become a program, not a file: devices.ts. Throws JobError: `invalid` for a value
 * out of range, `unsupported` for what cgroup v2 or this host does not have.
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
