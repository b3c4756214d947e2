import { invalid } from "./errors.ts";
import type { Rlimit } from "./frame.ts";

/** As it is asked for; an absent value is no limit. */
export interface NamedRlimit {
  readonly name: string;
  readonly soft?: number;
  readonly hard?: number;
}

/** By the names of setrlimit(2), in the numbers of Linux (asm-generic/resource.h). */
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
/** With them a job could have more of a CPU than its cgroup is given (sched(7)). */
const REFUSED = new Set(["nice", "rtprio", "rttime"]);

/** Throws `invalid` for an unknown or refused name, and for a soft limit above the hard one. */
export function rlimitsOf(asked: readonly NamedRlimit[]): Rlimit[] {
  const names = new Set<string>();
  return asked.map(({ name, soft = Infinity, hard = Infinity }) => {
    const resource = NUMBERS.get(name);
    if (REFUSED.has(name)) throw invalid("rlimits", `${name} is refused: it would let a job pass its CPU limits`);
    if (resource === undefined)
      throw invalid("rlimits", `${JSON.stringify(name)} is no limit; ${[...NUMBERS.keys()].join(", ")} are`);
    if (names.has(name)) throw invalid("rlimits", `${name} is given twice`);
    if (soft > hard) throw invalid("rlimits", `${name}: the soft limit ${soft} is above the hard one, ${hard}`);
    names.add(name);
    return { resource, soft, hard };
  });
}
