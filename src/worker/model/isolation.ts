/**
 * The parts of a job's isolation from its host and from other jobs, in the order of the supervisor's bits (supervisor.h):
 * namespaces, of which `user` gives the others without root; privileges that the process gives up; a filter of system calls.
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

/** The parts that the daemon's configuration can switch off. */
export const SWITCHES: readonly Part[] = PARTS.filter((part) => part !== "user");

/** A pid namespace is of no use without its /proc, nor a cgroup namespace without its /sys/fs/cgroup. */
const NEED_MOUNT: readonly Part[] = ["pid", "cgroup"];

/** The parts that a job goes without when it goes without `parts`. */
export function withDependants(parts: Iterable<Part>): Set<Part> {
  const all = new Set(parts);
  if (all.has("mount")) for (const part of NEED_MOUNT) all.add(part);
  return all;
}

export function isNamespace(part: Part): boolean {
  return part !== "no-new-privileges" && part !== "no-capabilities" && part !== "seccomp";
}
