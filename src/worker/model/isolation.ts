/**
 * What keeps a job from its host and from other jobs, in the order of the supervisor's bits (supervisor.h): namespaces,
 * of which `user` is the way to the others without root, what the job's process gives up, and its filter of system calls.
 */
export const PARTS = [
  "user",
  "pid",
  "mount",
  "ipc",
  "uts",
  "cgroup",
  "no-new-privileges",
  "no-capabilities",
  "seccomp",
] as const;
export type Part = (typeof PARTS)[number];

/** Those that a daemon's configuration can switch off. */
export const SWITCHES: readonly Part[] = PARTS.filter((part) => part !== "user");

/** A pid namespace is of no use without its /proc, nor a cgroup namespace without its /sys/fs/cgroup. */
const NEED_MOUNT: readonly Part[] = ["pid", "cgroup"];

/** What goes when these go. */
export function withDependants(parts: Iterable<Part>): Set<Part> {
  const all = new Set(parts);
  if (all.has("mount")) for (const part of NEED_MOUNT) all.add(part);
  return all;
}

export function isNamespace(part: Part): boolean {
  return part !== "no-new-privileges" && part !== "no-capabilities" && part !== "seccomp";
}
