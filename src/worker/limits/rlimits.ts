import { can, contentOf } from "../../os/proc.ts";
import { invalid, quoted } from "../model/errors.ts";
import type { NamedRlimit } from "../model/job.ts";

/** The limits of setrlimit(2), by name: their numbers on Linux (asm-generic/resource.h), and their titles in /proc/PID/limits. */
const LIMITS: ReadonlyMap<string, readonly [resource: number, title: string]> = new Map([
  ["cpu", [0, "Max cpu time"]],
  ["fsize", [1, "Max file size"]],
  ["data", [2, "Max data size"]],
  ["stack", [3, "Max stack size"]],
  ["core", [4, "Max core file size"]],
  ["nproc", [6, "Max processes"]],
  ["nofile", [7, "Max open files"]],
  ["memlock", [8, "Max locked memory"]],
  ["as", [9, "Max address space"]],
  ["locks", [10, "Max file locks"]],
  ["sigpending", [11, "Max pending signals"]],
  ["msgqueue", [12, "Max msgqueue size"]],
]);
/** Limits with which a job could get more CPU time than its cgroup has (sched(7)). */
const REFUSED = new Set(["nice", "rtprio", "rttime"]);

/**
 * Converts limits to their numbers. Throws `invalid` for an unknown or refused name, a limit above the host's, and a soft
 * limit above the hard one.
 */
export function rlimitsOf(asked: readonly NamedRlimit[]): Rlimit[] {
  const names = new Set<string>();
  return asked.map(({ name, soft = Infinity, hard = Infinity }) => {
    if (REFUSED.has(name)) throw invalid("rlimits", `${name} is refused: it would let a job pass its CPU limits`);
    const limit = LIMITS.get(name);
    if (!limit)
      throw invalid("rlimits", `${quoted(name)} is not a limit; give one of ${[...LIMITS.keys()].join(", ")}`);
    if (names.has(name)) throw invalid("rlimits", `${name} is given twice`);
    const [resource, title] = limit;
    const [most, whose] = ceilingOf(name, title);
    if (Math.max(hard, soft) > most)
      throw invalid("rlimits", `${name}: ${hard === Infinity ? "unlimited" : hard} is above ${most}, ${whose}`);
    if (soft > hard) throw invalid("rlimits", `${name}: the soft limit ${soft} is above the hard one, ${hard}`);
    names.add(name);
    return { resource, soft, hard };
  });
}

/** The most that a limit can be set to here, and whose rule that is (setrlimit(2)). */
function ceilingOf(name: string, title: string): readonly [most: number, whose: string] {
  if (!can("CAP_SYS_RESOURCE")) {
    const [, hard] = new RegExp(`^${title}\\s+\\S+\\s+(\\d+)`, "m").exec(contentOf("/proc/self/limits") ?? "") ?? [];
    if (hard !== undefined) return [Number(hard), "the limit that this worker has, which it may not raise"];
  }
  if (name === "nofile") return [Number(contentOf("/proc/sys/fs/nr_open")) || Infinity, "this host's fs.nr_open"];
  return [Infinity, ""];
}

/** A limit of setrlimit(2): its number there, and two values; Infinity for none. */
export interface Rlimit {
  readonly resource: number;
  readonly soft: number;
  readonly hard: number;
}
