import { accessSync, constants, existsSync, readdirSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { codeOf } from "../../os/errno.ts";
import { type Hierarchy, isRootGroup, ownGroup, withoutLeaf } from "../cgroup/hierarchy.ts";
import type { Place } from "./controllers.ts";
import { type Cause, CONTAINER, type Finding, found, textOf } from "./finding.ts";

const UNIFIED = "boot with systemd.unified_cgroup_hierarchy=1";
// systemd ends the jobs with the daemon unless KillMode=process.
const DELEGATE =
  "run jobsd as root, or in a unit with Delegate=yes: systemd-run --user -p Delegate=yes -p KillMode=process jobsd …";

/** Returns the directory in which a daemon makes its jobs' groups, or would make them; undefined when no cgroup v2 is mounted. */
export function placeOf(parent: string | undefined, hierarchy: Hierarchy | undefined): Place | undefined {
  const named = parent !== undefined;
  if (hierarchy?.kind === "cgroup2") return { base: dirname(hierarchy.path), named, hierarchy };
  const base = parent ?? withoutLeaf(ownGroup());
  return base !== undefined && existsSync(join(base, "cgroup.procs"))
    ? { base: resolve(base), named, hierarchy }
    : undefined;
}

/** Why jobs can have no group; undefined when they can. */
export function hierarchyCause(place: Place | undefined, parent: string | undefined): Cause | undefined {
  if (place === undefined) return unmounted(parent);
  const { base, hierarchy } = place;
  if (hierarchy?.kind === "cgroup2") return invalid(hierarchy.path);
  return (
    unwritable(base) ??
    old(base) ??
    invalid(base) ??
    (hierarchy && { reason: `${hierarchy.reason}, when the daemon started`, remedy: "restart jobsd: this has changed" })
  );
}

function unmounted(parent: string | undefined): Cause {
  if (parent !== undefined)
    return { reason: `${parent} is not a cgroup v2 group`, remedy: "give --cgroup a directory of a cgroup v2 mount" };
  const first = /^\S+ \S+ \S+ \S+ \S+ .*- cgroup /m.test(textOf("/proc/self/mountinfo"));
  return first
    ? { reason: "cgroup v2 is not mounted, cgroup v1 is", remedy: UNIFIED }
    : { reason: "cgroup v2 is not mounted", remedy: "mount -t cgroup2 none /sys/fs/cgroup" };
}

/** Making a group, turning controllers on and putting a process there need write access (cgroup-v2.rst, "Delegation"). */
function unwritable(base: string): Cause | undefined {
  for (const path of [base, ...["cgroup.procs", "cgroup.subtree_control"].map((file) => join(base, file))]) {
    try {
      accessSync(path, constants.W_OK);
    } catch (error) {
      const errno = codeOf(error);
      return errno === "EROFS"
        ? { reason: `${base} is mounted read-only (EROFS)`, remedy: CONTAINER }
        : { reason: `${path} is not open to uid ${process.getuid?.()} (${errno})`, remedy: DELEGATE };
    }
  }
  return undefined;
}

/** The root group has no cgroup.kill, so a group below it is looked at. */
function old(base: string): Cause | undefined {
  const below = isRootGroup(base)
    ? readdirSync(base, { withFileTypes: true }).find((entry) => entry.isDirectory())?.name
    : ".";
  if (below === undefined || existsSync(join(base, below, "cgroup.kill"))) return undefined;
  return { reason: "this kernel has no cgroup.kill", remedy: "Linux 5.14" };
}

/** A threaded group takes no job, nor does one whose parent has processes and threaded controllers (cgroup-v2.rst, "Threads"). */
function invalid(group: string): Cause | undefined {
  const type = textOf(join(group, "cgroup.type")) || "domain"; // the root group has no such file
  return type === "domain"
    ? undefined
    : { reason: `${group} is ${type}, and takes no job`, remedy: "give jobsd an empty group: --cgroup" };
}

/** Findings about the hierarchy itself, and about what needs no controller. */
export function cgroupFindings(place: Place | undefined, cause: Cause | undefined): Finding[] {
  const path = place?.hierarchy?.kind === "cgroup2" ? place.hierarchy.path : place?.base;
  // The directory is missing when PSI is off (psi_proc_init(), kernel/sched/psi.c).
  const pressure = existsSync("/proc/pressure")
    ? undefined
    : { reason: "this kernel does not count pressure", remedy: "boot with psi=1 (a kernel with CONFIG_PSI)" };
  return [
    found("cgroup", "v2", cause, [
      `limits, usage and the ends of whole trees, in ${path}`,
      "no limits; usage of the main process only",
    ]),
    found(
      "cgroup",
      "pressure",
      pressure,
      ["how long a group waits is counted", "how long a group waits is not counted"],
      "limited",
    ),
  ];
}
