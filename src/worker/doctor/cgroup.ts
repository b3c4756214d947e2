import { accessSync, constants, existsSync, readdirSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { codeOf } from "../../os/errno.ts";
import { isRootGroup, ownGroup, withoutLeaf, type Hierarchy } from "../cgroup.ts";
import type { Place } from "./controllers.ts";
import { CONTAINER, found, textOf, type Cause, type Finding } from "./finding.ts";

const UNIFIED = "boot with systemd.unified_cgroup_hierarchy=1";
// Else systemd ends jobs with the daemon.
const DELEGATE =
  "run jobsd as root, or in a unit with Delegate=yes: systemd-run --user -p Delegate=yes -p KillMode=process jobsd …";

/** Where a daemon makes its jobs' groups, or would; undefined where no cgroup v2 is mounted. */
export function placeOf(parent: string | undefined, hierarchy: Hierarchy | undefined): Place | undefined {
  const named = parent !== undefined;
  if (hierarchy?.kind === "cgroup2") return { base: dirname(hierarchy.path), named, hierarchy };
  const base = parent ?? withoutLeaf(ownGroup());
  return base !== undefined && existsSync(join(base, "cgroup.procs"))
    ? { base: resolve(base), named, hierarchy }
    : undefined;
}

/** Why no group can be made for jobs, nor jobs put in one. */
export function hierarchyCause(place: Place | undefined, parent: string | undefined): Cause | undefined {
  if (place === undefined) return unmounted(parent);
  const { base, hierarchy } = place;
  if (hierarchy?.kind === "cgroup2") return invalid(hierarchy.path);
  return (
    unwritable(base) ??
    old(base) ??
    invalid(base) ??
    (hierarchy && { reason: `${hierarchy.reason}, when the daemon started`, remedy: "restart jobsd: it is so no more" })
  );
}

function unmounted(parent: string | undefined): Cause {
  if (parent !== undefined)
    return { reason: `${parent} is no cgroup v2 group`, remedy: "give --cgroup a directory of a cgroup v2 mount" };
  const first = /^\S+ \S+ \S+ \S+ \S+ .*- cgroup /m.test(textOf("/proc/self/mountinfo"));
  return first
    ? { reason: "cgroup v2 is not mounted, cgroup v1 is", remedy: UNIFIED }
    : { reason: "cgroup v2 is not mounted", remedy: "mount -t cgroup2 none /sys/fs/cgroup" };
}

/** To make groups, to turn controllers on, and to put a process there (cgroup-v2.rst, "Delegation"). */
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

/** The root of all has no cgroup.kill, but those below have. */
function old(base: string): Cause | undefined {
  const below = isRootGroup(base)
    ? readdirSync(base, { withFileTypes: true }).find((entry) => entry.isDirectory())?.name
    : ".";
  if (below === undefined || existsSync(join(base, below, "cgroup.kill"))) return undefined;
  return { reason: "this kernel has no cgroup.kill", remedy: "Linux 5.14" };
}

/** Of a threaded group, or below one with processes that hands threaded controllers on (cgroup-v2.rst, "Threads"). */
function invalid(group: string): Cause | undefined {
  const type = textOf(join(group, "cgroup.type")) || "domain"; // The root of all has no such file.
  return type === "domain"
    ? undefined
    : { reason: `${group} is ${type}, and takes no job`, remedy: "give jobsd an empty group: --cgroup" };
}

/** The hierarchy itself, and what does not hang on a controller. */
export function cgroupFindings(place: Place | undefined, cause: Cause | undefined): Finding[] {
  const path = place?.hierarchy?.kind === "cgroup2" ? place.hierarchy.path : place?.base;
  // psi_proc_init(), kernel/sched/psi.c: nothing is there where it is off.
  const pressure = existsSync("/proc/pressure")
    ? undefined
    : { reason: "this kernel does not count pressure", remedy: "boot with psi=1 (a kernel with CONFIG_PSI)" };
  return [
    found("cgroup", "v2", cause, [
      `limits, usage and the ends of whole trees, in ${path}`,
      "no limits; usage is the main process's alone",
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
