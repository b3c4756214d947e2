import { readFileSync } from "node:fs";
import { invalid, quoted } from "../model/errors.ts";
import type { NamedRlimit } from "../model/job.ts";

/** The numbers of limits on Linux (asm-generic/resource.h), by their names in setrlimit(2). */
const NUMBERS: ReadonlyMap<string, number> = new Map([
  ["cpu", 0],
  ["fsize", 1],
  ["data", 2],
  ["stack", 3],
  ["core", 4],
  ["nproc", 6],
  ["nofile", 7],
  ["memlock", 8],
  ["as", 9],
  ["locks", 10],
  ["sigpending", 11],
  ["msgqueue", 12],
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
    const resource = NUMBERS.get(name);
    if (REFUSED.has(name)) throw invalid("rlimits", `${name} is refused: it would let a job pass its CPU limits`);
    if (resource === undefined)
      throw invalid("rlimits", `${quoted(name)} is not a limit; give one of ${[...NUMBERS.keys()].join(", ")}`);
    if (names.has(name)) throw invalid("rlimits", `${name} is given twice`);
    const [most, whose] = ceilingOf(name, resource);
    if (Math.max(hard, soft) > most)
      throw invalid("rlimits", `${name}: ${hard === Infinity ? "unlimited" : hard} is above ${most}, ${whose}`);
    if (soft > hard) throw invalid("rlimits", `${name}: the soft limit ${soft} is above the hard one, ${hard}`);
    names.add(name);
    return { resource, soft, hard };
  });
}

/** The most that a limit can be set to here, and whose rule that is (setrlimit(2)). */
function ceilingOf(name: string, resource: number): readonly [most: number, whose: string] {
  if (!mayRaise()) {
    const [, hard = "unlimited"] =
      new RegExp(`^${ROWS[resource]}\\s+\\S+\\s+(\\d+)`, "m").exec(readFile("self/limits")) ?? [];
    if (hard !== "unlimited") return [Number(hard), "the limit that this worker has, which it may not raise"];
  }
  if (name === "nofile") return [Number(readFile("sys/fs/nr_open")) || Infinity, "this host's fs.nr_open"];
  return [Infinity, ""];
}

/** The titles of limits in /proc/PID/limits, by number. */
const ROWS = [
  "Max cpu time",
  "Max file size",
  "Max data size",
  "Max stack size",
  "Max core file size",
  "Max resident set",
  "Max processes",
  "Max open files",
  "Max locked memory",
  "Max address space",
  "Max file locks",
  "Max pending signals",
  "Max msgqueue size",
];
const CAP_SYS_RESOURCE = 24n;

function mayRaise(): boolean {
  const [, mask = "0"] = /^CapEff:\s+([0-9a-f]+)$/m.exec(readFile("self/status")) ?? [];
  return ((BigInt(`0x${mask}`) >> CAP_SYS_RESOURCE) & 1n) === 1n;
}

function readFile(name: string): string {
  try {
    return readFileSync(`/proc/${name}`, "utf8");
  } catch {
    return "";
  }
}

/** A limit of setrlimit(2): its number there, and two values; Infinity for none. */
export interface Rlimit {
  readonly resource: number;
  readonly soft: number;
  readonly hard: number;
}
