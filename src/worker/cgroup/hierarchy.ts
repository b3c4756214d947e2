import { accessSync, constants, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { reasonOf } from "../../os/errno.ts";
import { CONTROLLERS } from "../limits/setting.ts";

/** Where jobs' groups are made, or why there are none on this host. */
export type Hierarchy =
  | { readonly kind: "cgroup2"; readonly path: string; readonly controllers: ReadonlySet<string> }
  | { readonly kind: "none"; readonly reason: string };

/** The group that a daemon leaves its own for. */
export const LEAF = "daemon";

function words(path: string): string[] {
  return readFileSync(path, "utf8").split(/\s+/).filter(Boolean);
}

/** Where cgroup v2 is mounted, and which group is at the root there; proc_pid_mountinfo(5). */
export function cgroupMounts(): { readonly root: string; readonly mountPoint: string }[] {
  return readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .map((line) => line.split(" "))
    .filter((fields) => fields[fields.indexOf("-") + 1] === "cgroup2")
    .map(([, , , root = "", mountPoint = ""]) => ({ root, mountPoint }));
}

/** The directory of this process's own cgroup v2 group; cgroups(7). */
export function ownGroup(): string | undefined {
  const own = /^0::(\/.*)$/m.exec(readFileSync("/proc/self/cgroup", "utf8"))?.[1];
  if (own === undefined) return undefined;
  for (const { root, mountPoint } of cgroupMounts()) {
    const base = root === "/" ? "" : root;
    if (own === base || own === root || own.startsWith(`${base}/`)) return join(mountPoint, own.slice(base.length));
  }
  return undefined;
}

/** Of all, not only of a namespace. */
export function isRootGroup(path: string): boolean {
  return !existsSync(join(path, "cgroup.type"));
}

/** This process is in the group that its cgroup namespace begins at. */
export function isNamespaceRoot(): boolean {
  return /^0::\/$/m.test(readFileSync("/proc/self/cgroup", "utf8"));
}

/** The processes of `path` that are neither this one nor its children. */
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

/** Beside a daemon, as by `docker exec`, a process is put where the daemon went. */
export function withoutLeaf(own: string | undefined): string | undefined {
  return own !== undefined && basename(own) === LEAF && strangers(own).length > 0 ? dirname(own) : own;
}

/**
 * Controllers can be turned on for children only where no process sits (the no-internal-process rule,
 * cgroup-v2.rst): this process and its children move to a leaf. Strangers are moved only where the group is the
 * root of a namespace, that is, of a container that this process was given.
 */
function vacate(path: string): void {
  if (isRootGroup(path) || (!isNamespaceRoot() && strangers(path).length > 0)) return;
  const leaf = join(path, LEAF);
  // Node's own `recursive` tells a read-only file system as ENOENT.
  if (!existsSync(leaf)) mkdirSync(leaf);
  for (const pid of words(join(path, "cgroup.procs"))) {
    try {
      writeFileSync(join(leaf, "cgroup.procs"), pid);
    } catch {
      // It has ended, or is the kernel's.
    }
  }
}

/** All at once, which is one walk of the kernel over the tree, and one by one where one of them cannot be had. */
function enable(path: string): Set<string> {
  const file = join(path, "cgroup.subtree_control");
  const on = new Set(words(file));
  // Threaded controllers could be had, and would make groups below take no process at all (cgroup-v2.rst, "Threads").
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
 * the controllers that can be had. Never throws: a host without is told as such.
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

/** One that a daemon has made before. */
export function hierarchyAt(path: string): Hierarchy {
  return { kind: "cgroup2", path, controllers: new Set(words(join(path, "cgroup.subtree_control"))) };
}

/** The processes of a group and of those below it, as numbers. Throws where there is no such group. */
export function processesIn(path: string): number[] {
  const below = readdirSync(path, { withFileTypes: true }).filter((entry) => entry.isDirectory());
  const own = words(join(path, "cgroup.procs")).map(Number);
  return [...own, ...below.flatMap(({ name }) => processesIn(join(path, name)))];
}
