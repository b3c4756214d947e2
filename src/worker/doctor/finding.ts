import { contentOf } from "../../os/proc.ts";

/** Whether this host keeps one of the promises to jobs. */
export interface Finding {
  readonly area:
    | "cgroup"
    | "controller"
    | "namespace"
    | "privilege"
    | "user"
    | "owner"
    | "device rules"
    | "supervisor"
    | "state";
  /** Such as "memory" or "pid". */
  readonly name: string;
  /** `limited`: the host gives less than it could, but breaks no promise. */
  readonly state: "enforced" | "limited" | "missing";
  /** What the state means for a job, in a short phrase. */
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

/** A finding that something is enforced, or is not when there is a cause. */
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

/** The content of a file of /proc or /sys; empty when it does not exist or cannot be read. */
export function textOf(path: string): string {
  return contentOf(path) ?? "";
}
