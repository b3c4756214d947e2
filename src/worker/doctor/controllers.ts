import { existsSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { type Hierarchy, isNamespaceRoot, isRootGroup, strangers } from "../cgroup/hierarchy.ts";
import { thisHost } from "../limits/host.ts";
import { type Controller, CONTROLLERS } from "../limits/setting.ts";
import { type Cause, type Finding, found, textOf } from "./finding.ts";

/** The flags that need a controller, its name in cgroup v1 if that differs, and the kernel option that builds it. */
const KNOWN: Readonly<Record<Controller, { readonly uses: string; readonly v1?: string; readonly config: string }>> = {
  cpu: { uses: "--cpus, --cpu-shares", config: "CONFIG_CGROUP_SCHED" },
  memory: { uses: "--memory, --memory-reservation, --memory-swap", config: "CONFIG_MEMCG" },
  pids: { uses: "--pids", config: "CONFIG_CGROUP_PIDS" },
  io: { uses: "--io-max, --io-weight", v1: "blkio", config: "CONFIG_BLK_CGROUP" },
  cpuset: { uses: "--cpuset-cpus, --cpuset-mems", config: "CONFIG_CPUSETS" },
  hugetlb: { uses: "hugepageLimits of --resources", config: "CONFIG_CGROUP_HUGETLB" },
  rdma: { uses: "rdma of --resources", config: "CONFIG_CGROUP_RDMA" },
  misc: { uses: "misc.max in unified of --resources", config: "CONFIG_CGROUP_MISC" },
};

/** The controllers that systemd delegates to a unit with Delegate=yes; systemd does not touch the others. */
const OF_SYSTEMD: ReadonlySet<string> = new Set(["cpu", "cpuset", "io", "memory", "pids"]);

/** The group `base` below which jobs' groups would be made, and the hierarchy there if a daemon has opened it. */
export interface Place {
  readonly base: string;
  /** The worker's options name it; otherwise it is this process's own group. */
  readonly named: boolean;
  readonly hierarchy?: Hierarchy | undefined;
}

/** A finding for each controller, and for each part that an enforced one lacks on this host. */
export function controllerFindings(place: Place | undefined, cause: Cause | undefined): Finding[] {
  return CONTROLLERS.flatMap((controller) => {
    const why = place === undefined ? cause : (absent(controller, place) ?? cause ?? refused(controller, place));
    const { uses } = KNOWN[controller];
    const finding = found("controller", controller, why, [enforced(controller), `refused: ${uses}`]);
    const group = why || !place ? undefined : groupWith(controller, place);
    return [finding].concat(group === undefined ? [] : lacking(controller, group));
  });
}

function enforced(controller: Controller): string {
  const { uses } = KNOWN[controller];
  const disks = controller === "io" ? diskNames() : [];
  const sizes = controller === "hugetlb" ? thisHost(undefined).pageSizes() : [];
  if (disks.length > 0) return `${uses}; --io-max for whole disks: ${disks.join(" ")}`;
  return sizes.length > 0 ? `${uses}, for pages of ${sizes.join(" and ")}` : uses;
}

/** Why `base` is not given a controller (cgroup-v2.rst, "Controlling Controllers"). */
function absent(controller: Controller, { base }: Place): Cause | undefined {
  if (has(base, "cgroup.controllers", controller)) return undefined;
  const { v1 = controller, config } = KNOWN[controller];
  const file = join(base, "cgroup.controllers");
  if (ofVersion1().has(v1))
    return {
      reason: `not in ${file}: cgroup v1 has it`,
      remedy: "boot with systemd.unified_cgroup_hierarchy=1, or without systemd with cgroup_no_v1=all",
    };
  const above = [...ancestors(base)];
  const givers = above.filter((group) => !has(group, "cgroup.subtree_control", controller));
  const top = above.at(-1) ?? base;
  if (has(top, "cgroup.controllers", controller)) {
    const first = givers.at(-1) ?? top;
    const on = givers.toReversed().map((group) => join(group, "cgroup.subtree_control"));
    const by = `echo +NAME > ${on.join(", then > ")}`;
    return {
      reason: `not in ${file}: ${first} does not delegate it`,
      remedy: OF_SYSTEMD.has(controller) ? `add Delegate=yes to the unit; without systemd: ${by}` : by,
    };
  }
  if (!isRootGroup(top))
    return {
      reason: `not in ${file}: this container is not given it`,
      remedy: `on its host, see that the group above it has ${controller} in cgroup.subtree_control`,
    };
  return new RegExp(`^${v1}\\s.*\\s0$`, "m").test(textOf("/proc/cgroups"))
    ? { reason: "off on the kernel's command line", remedy: `boot without cgroup_disable=${controller}` }
    : { reason: "this kernel does not have it", remedy: `a kernel with ${config}` };
}

/** Why a controller that `base` has cannot be delegated to jobs' groups. */
function refused(controller: Controller, { base, named, hierarchy }: Place): Cause | undefined {
  if (hierarchy?.kind === "cgroup2") {
    if (hierarchy.controllers.has(controller) && has(hierarchy.path, "cgroup.subtree_control", controller))
      return undefined;
  } else if (has(base, "cgroup.subtree_control", controller)) return undefined;
  const others = crowd(base, named);
  if (others.length > 0)
    return {
      reason: `other processes are in ${base} (${others.slice(0, 3).join(", ")}), so it cannot delegate controllers (EBUSY)`,
      remedy:
        "give jobsd a group of its own: systemd-run -p Delegate=yes -p KillMode=process jobsd …, or --cgroup with an empty one",
    };
  return hierarchy?.kind === "cgroup2"
    ? { reason: "the kernel refused it when the daemon started, or it was turned off since", remedy: "restart jobsd" }
    : undefined;
}

/** The processes in a group that a daemon would not move, and that keep controllers from being turned on below it. */
function crowd(base: string, named: boolean): string[] {
  if (isRootGroup(base)) return [];
  if (named) return textOf(join(base, "cgroup.procs")).split("\n").filter(Boolean);
  return isNamespaceRoot() ? [] : strangers(base);
}

function has(group: string, file: string, controller: string): boolean {
  return textOf(join(group, file)).split(" ").includes(controller);
}

/** The groups above `group` in this mount, the nearest first. */
function* ancestors(group: string): Generator<string> {
  for (let at = dirname(group); existsSync(join(at, "cgroup.controllers")); at = dirname(at)) yield at;
}

/** The controllers that cgroup v1 has: cgroups(7), "/proc files". */
function ofVersion1(): ReadonlySet<string> {
  const lines = textOf("/proc/self/cgroup").matchAll(/^\d+:([^:]+):/gm);
  return new Set([...lines].flatMap(([, names]) => names?.split(",") ?? []));
}

/** A group that has a controller's files, which show what the kernel lacks. */
function groupWith(controller: Controller, { base, hierarchy }: Place): string | undefined {
  const below = readdirSync(base, { withFileTypes: true }).flatMap((entry) =>
    entry.isDirectory() ? [join(base, entry.name)] : [],
  );
  const groups = [...(hierarchy?.kind === "cgroup2" ? [hierarchy.path] : []), base, ...below];
  return groups.find((group) => !isRootGroup(group) && has(group, "cgroup.controllers", controller));
}

function lacking(controller: Controller, group: string): Finding[] {
  const without = (file: string): boolean => !existsSync(join(group, file));
  const lacks: Finding[] = [];
  const add = (name: string, state: "limited" | "missing", meaning: string, reason: string, remedy: string): void => {
    lacks.push({ area: "controller", name, state, meaning, reason, remedy });
  };
  if (controller === "memory" && without("memory.peak"))
    add("memory.peak", "limited", "a job's peak memory is not known", "this kernel has no memory.peak", "Linux 5.19");
  if (controller === "memory" && without("memory.swap.max") && swaps())
    add("swap", "missing", "refused: --memory-swap", "this kernel does not count swap", "boot with swapaccount=1");
  if (controller === "pids" && without("pids.peak"))
    add("pids.peak", "limited", "a job's most processes are not known", "this kernel has no pids.peak", "Linux 6.1");
  if (controller !== "io") return lacks;
  if (without("io.max"))
    add(
      "io.max",
      "missing",
      "refused: --io-max",
      "this kernel has no io.max",
      "a kernel with CONFIG_BLK_DEV_THROTTLING",
    );
  if (without("io.weight") && without("io.bfq.weight"))
    add("io.weight", "missing", "refused: --io-weight", "neither BFQ nor io.cost is in this kernel", "modprobe bfq");
  else if (!weighs(group))
    add(
      "io.weight",
      "limited",
      "--io-weight has no effect",
      "BFQ schedules no disk, and io.cost is not on",
      "echo bfq > /sys/block/DISK/queue/scheduler",
    );
  return lacks;
}

/** Whether io.weight has an effect: cgroup-v2.rst, "IO Interface Files", and bfq-iosched.rst. */
function weighs(group: string): boolean {
  const top = [...ancestors(group)].at(-1) ?? group;
  const cost = join(top, "io.cost.qos"); // only in the root group
  return (
    textOf(cost).includes("enable=1") ||
    diskNames().some((disk) => textOf(`/sys/block/${disk}/queue/scheduler`).includes("[bfq]"))
  );
}

function diskNames(): string[] {
  return existsSync("/sys/block")
    ? readdirSync("/sys/block").filter((name) => !/^(loop|ram|zram|sr)\d/.test(name))
    : [];
}

function swaps(): boolean {
  return textOf("/proc/swaps").includes("\n");
}
