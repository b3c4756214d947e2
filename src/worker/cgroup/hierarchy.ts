import { accessSync, constants, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { reasonOf } from "../../os/errno.ts";
import { CONTROLLERS } from "../limits/setting.ts";

/** The parent of jobs' groups, or the reason why this host has none. */
export type Hierarchy =
  | { readonly kind: "cgroup2"; readonly path: string; readonly controllers: ReadonlySet<string> }
  | { readonly kind: "none"; readonly reason: string };

/** The group that a daemon moves to from its own. */
export const LEAF = "daemon";

function words(path: string): string[] {
  return readFileSync(path, "utf8").split(/\s+/).filter(Boolean);
}

/** The mounts of cgroup v2, and the group at the root of each: proc_pid_mountinfo(5). */
export function cgroupMounts(): { readonly root: string; readonly mountPoint: string }[] {
  return readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .map((line) => line.split(" "))
    .filter((fields) => fields[fields.indexOf("-") + 1] === "cgroup2")
    .map(([, , , root = "", mountPoint = ""]) => ({ root, mountPoint }));
}

/** The directory of this process's own cgroup v2 group (cgroups(7)); undefined when no mount shows it. */
export function ownGroup(): string | undefined {
  const own = /^0::(\/.*)$/m.exec(readFileSync("/proc/self/cgroup", "utf8"))?.[1];
  if (own === undefined) return undefined;
  for (const { root, mountPoint } of cgroupMounts()) {
    const base = root === "/" ? "" : root;
    if (own === base || own === root || own.startsWith(`${base}/`)) return join(mountPoint, own.slice(base.length));
  }
  return undefined;
}

/** Whether a group is the root of the whole hierarchy, and not only of a namespace. */
export function isRootGroup(path: string): boolean {
  return !existsSync(join(path, "cgroup.type"));
}

/** Whether this process is in the root group of its cgroup namespace. */
export function isNamespaceRoot(): boolean {
  return /^0::\/$/m.test(readFileSync("/proc/self/cgroup", "utf8"));
}

/** The processes in a group that are neither this process nor its children. */
export function strangers(path: string): string[] {
  return words(join(path, "cgroup.procs")).filter((pid) => {
    if (Number(pid) === process.pid) return false;
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
      return stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1] !== String(process.pid);
    } catch {
      return false;
    }
  });
}

/** The group above the leaf, if a daemon has moved there: `docker exec` puts a process into the daemon's leaf. */
export function withoutLeaf(own: string | undefined): string | undefined {
  return own !== undefined && basename(own) === LEAF && strangers(own).length > 0 ? dirname(own) : own;
}

/**
 * Moves this process and its children to a leaf, because controllers can be turned on only below a group without processes
 * (cgroup-v2.rst, the no-internal-process rule). Other processes are moved only from the root of a cgroup namespace: there
 * they are in the daemon's own container.
 */
function vacate(path: string): void {
  if (isRootGroup(path) || (!isNamespaceRoot() && strangers(path).length > 0)) return;
  const leaf = join(path, LEAF);
  // With `recursive` Node reports a read-only file system as ENOENT.
  if (!existsSync(leaf)) mkdirSync(leaf);
  for (const pid of words(join(path, "cgroup.procs"))) {
    try {
      writeFileSync(join(leaf, "cgroup.procs"), pid);
    } catch {
      // The process has ended, or is a kernel thread.
    }
  }
}

/** Turns controllers on: all with one write, which is fastest, and one by one if that fails. Returns those that are on. */
export function enable(path: string): Set<string> {
  const file = join(path, "cgroup.subtree_control");
  const on = new Set(words(file));
  // Threaded controllers could be turned on here, but then groups below could contain no process (cgroup-v2.rst, "Threads").
  if (!isRootGroup(path) && words(join(path, "cgroup.procs")).length > 0) return on;
  const available = new Set(words(join(path, "cgroup.controllers")));
  const wanted = CONTROLLERS.filter((controller) => available.has(controller) && !on.has(controller));
  for (const names of [wanted, ...wanted.map((controller) => [controller])]) {
    try {
      if (names.length > 0) writeFileSync(file, names.map((name) => `+${name}`).join(" "));
      if (names === wanted) break;
    } catch {
      // Not delegated, or the group is not empty: limits that need it are refused by name.
    }
  }
  return new Set(words(file));
}

/**
 * Finds cgroup v2 and makes the group `name` for jobs' groups, in `parent` or in this process's own group, with all
 * controllers that this host gives. Never throws: for a host without cgroup v2 the result has the reason.
 */
export function openHierarchy(name: string, parent?: string): Hierarchy {
  try {
    const base = parent ?? withoutLeaf(ownGroup());
    if (base === undefined || !existsSync(join(base, "cgroup.procs")))
      return { kind: "none", reason: `cgroup v2 is not mounted${parent === undefined ? "" : ` at ${parent}`}` };
    if (parent === undefined) vacate(base);
    // clone3 into a group needs the right to move a process there (cgroup-v2.rst, delegation).
    accessSync(join(base, "cgroup.procs"), constants.W_OK);
    enable(base);
    const path = join(base, name);
    mkdirSync(path, { recursive: true });
    if (!existsSync(join(path, "cgroup.kill")))
      return { kind: "none", reason: "the kernel has no cgroup.kill (Linux 5.14)" };
    return { kind: "cgroup2", path, controllers: enable(path) };
  } catch (error) {
    return {
      kind: "none",
      reason: `cgroup v2 cannot be used: ${reasonOf(error)}`,
    };
  }
}

/** The hierarchy at a group that an earlier daemon made. */
export function hierarchyAt(path: string): Hierarchy {
  return { kind: "cgroup2", path, controllers: new Set(words(join(path, "cgroup.subtree_control"))) };
}

/** The processes of a group and of those below it, as numbers. Throws where there is no such group. */
export function processesIn(path: string): number[] {
  const below = readdirSync(path, { withFileTypes: true }).filter((entry) => entry.isDirectory());
  const own = words(join(path, "cgroup.procs")).map(Number);
  return [...own, ...below.flatMap(({ name }) => processesIn(join(path, name)))];
}
