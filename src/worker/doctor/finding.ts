import { readFileSync } from "node:fs";

/** One thing that jobs are promised, as this host has it. */
export interface Finding {
  readonly area: "cgroup" | "controller" | "namespace" | "privilege" | "user" | "device rules" | "supervisor" | "state";
  /** As in "memory", "pid". */
  readonly name: string;
  /** `limited`: there is less of it than there could be, and no promise is broken. */
  readonly state: "enforced" | "limited" | "missing";
  /** What that is to a job, in a short phrase. */
  readonly meaning: string;
  /** Why it is not enforced. */
  readonly reason?: string;
  /** What to do about it. */
  readonly remedy?: string;
}

export interface Cause {
  readonly reason: string;
  readonly remedy: string;
}

export const CONTAINER = "docker run --privileged --cgroupns=private";
export const SECCOMP = "docker run --security-opt seccomp=unconfined, or --privileged";

/** Not enforced where there is a cause. */
export function found(
  area: Finding["area"],
  name: string,
  cause: Cause | undefined,
  [enforced, otherwise]: readonly [string, string],
  state: "limited" | "missing" = "missing",
): Finding {
  return cause
    ? { area, name, state, meaning: otherwise, ...cause }
    : { area, name, state: "enforced", meaning: enforced };
}

/** A file of /proc or /sys; empty where there is none, or where it is not to be read. */
export function textOf(path: string): string {
  try {
    return readFileSync(path, "utf8").trim();
  } catch {
    return "";
  }
}
