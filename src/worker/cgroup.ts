import { watch } from "node:fs";
import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  rmdirSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { codeOf, reasonOf } from "../os/errno.ts";
import { notWritten } from "./failure.ts";
import { isLeaderless } from "./process.ts";
import { withReserve } from "./reserve.ts";
import { CONTROLLERS, type Setting } from "./limits/setting.ts";

/** A setting, of which only the supervisor's tests know no more than the file. */
type Written = Pick<Setting, "file" | "value"> & Partial<Setting>;

/** Where jobs' groups are made, or why there are none on this host. */
export type Hierarchy =
  | { readonly kind: "cgroup2"; readonly path: string; readonly controllers: ReadonlySet<string> }
  | { readonly kind: "none"; readonly reason: string };

/** How often a group is looked at that cannot be watched, and one of which the kernel may have dropped the event. */
const UNWATCHED_MS = 100;
const WATCHED_MS = 1000;

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

/** Without O_CREAT: a file that is not there is told as such, and not as one that may not be made. */
function writeOnce(path: string, value: string): void {
  const fd = openSync(path, constants.O_WRONLY);
  try {
    writeSync(fd, value);
  } finally {
    closeSync(fd);
  }
}

/**
 * Writes a group's limits, one write(2) a value; if one fails, JobError `unsupported` names its file, value and errno.
 * Returns each file's content read back.
 */
export function limitGroup(path: string, settings: readonly Written[]): Map<string, string> {
  for (const { file, value, field, optional } of settings) {
    try {
      writeOnce(join(path, file), value);
    } catch (error) {
      if (optional && codeOf(error) === "ENOENT") continue;
      throw notWritten({ file, value, field }, error);
    }
  }
  return readLimits(
    path,
    settings.map(({ file }) => file),
  );
}

/** What the kernel has in `files`, as far as they are there. */
export function readLimits(path: string, files: Iterable<string>): Map<string, string> {
  const limits = new Map<string, string>();
  for (const file of files) {
    try {
      limits.set(file, readFileSync(join(path, file), "utf8").trim());
    } catch {
      // The group is gone, and the job with it.
    }
  }
  return limits;
}

/**
 * Kills every process of the group, forks in flight too. The kernel's own way does not reach a process whose first thread
 * has ended; what such a one forks before it is killed is met the second time.
 */
export function killGroup(path: string): void {
  for (let pass = 0; pass < 2; pass++) {
    try {
      withReserve(() => writeFileSync(join(path, "cgroup.kill"), "1"));
      for (const pid of processesIn(path)) if (isLeaderless(pid)) process.kill(pid, "SIGKILL");
    } catch {
      // The group is gone, or a process of it has ended.
    }
  }
}

/** The processes of a group and of those below it, as numbers. Throws where there is no such group. */
export function processesIn(path: string): number[] {
  const below = readdirSync(path, { withFileTypes: true }).filter((entry) => entry.isDirectory());
  const own = words(join(path, "cgroup.procs")).map(Number);
  return [...own, ...below.flatMap(({ name }) => processesIn(join(path, name)))];
}

export function populated(path: string): boolean {
  try {
    return withReserve(() => readFileSync(join(path, "cgroup.events"), "utf8")).includes("populated 1");
  } catch {
    return false;
  }
}

function removeTree(path: string): void {
  try {
    rmdirSync(path);
  } catch {
    for (const entry of readdirSync(path, { withFileTypes: true }))
      if (entry.isDirectory()) removeTree(join(path, entry.name));
    rmdirSync(path);
  }
}

/** Removes a group and what a job made below it, once nothing runs there; waits for that if need be. */
export async function removeGroup(path: string): Promise<void> {
  for (;;) {
    try {
      withReserve(() => removeTree(path));
      return;
    } catch (error) {
      const code = error instanceof Error && "code" in error ? error.code : undefined;
      if (code === "ENOENT") return;
      if (code !== "EBUSY") throw error;
    }
    await emptied(path);
  }
}

/** Resolves when nothing runs in the group: the kernel tells by cgroup.events. */
function emptied(path: string): Promise<void> {
  return new Promise((resolve) => {
    try {
      const watcher = watch(join(path, "cgroup.events"), check);
      const timer = setInterval(check, WATCHED_MS);
      function check(): void {
        if (populated(path)) return;
        watcher.close();
        clearInterval(timer);
        // EBUSY may outlast "populated 0" by the moment in which the last task is put away.
        setImmediate(resolve);
      }
      check();
    } catch {
      // No watch is to be had (inotify(7): EMFILE, ENOSPC), and the kernel has no other event.
      setTimeout(resolve, UNWATCHED_MS);
    }
  });
}
