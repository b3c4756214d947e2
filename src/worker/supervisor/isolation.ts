import { cgroupMounts, type Hierarchy } from "../cgroup/hierarchy.ts";
import { type Part, PARTS, withDependants } from "../model/isolation.ts";

/** The isolation that the spawner is asked for. */
export interface Isolation {
  readonly wanted: ReadonlySet<Part>;
  /** Where cgroup v2 is mounted. */
  readonly cgroups: string;
  /** JobRecord from jobs of the worker's own user, who may do what it may: not to be read, or not to be changed. */
  readonly hidden: readonly string[];
  readonly sealed: readonly string[];
  /** Most jobs have a /tmp of their own. */
  readonly ownTmp: boolean;
}

/** The supervisor's bit for it, beside those of the parts. */
const OWN_TMP = 1 << 30;

/** All but what is switched off, and what makes no sense without another. */
export function isolationOf(
  {
    isolationOff = [],
    hidden = [],
    sealed = [],
    ownTmp = false,
  }: Partial<Pick<Isolation, "hidden" | "sealed" | "ownTmp">> & { readonly isolationOff?: readonly Part[] },
  hierarchy: Hierarchy,
): Isolation {
  const off = withDependants(isolationOff);
  const wanted = new Set(PARTS.filter((part) => !off.has(part)));
  if (process.getuid?.() === 0) wanted.delete("user");
  const cgroups = hierarchy.kind === "none" ? undefined : mountOf(hierarchy.path);
  if (cgroups === undefined) wanted.delete("cgroup");
  return { wanted, cgroups: cgroups ?? "", hidden, sealed, ownTmp };
}

function mountOf(group: string): string | undefined {
  return cgroupMounts().findLast(({ mountPoint }) => group.startsWith(`${mountPoint}/`))?.mountPoint;
}

/** Returns the isolation as arguments of the spawner's program. */
export function isolationArguments({ wanted, cgroups, hidden, sealed, ownTmp }: Isolation): string[] {
  const bits = bitsOf(wanted) | (ownTmp ? OWN_TMP : 0);
  return [String(bits), cgroups, ...hidden.map((path) => `-${path}`), ...sealed.map((path) => `=${path}`)];
}

/** Returns the parts that this host gives. */
export function holding({ wanted }: Isolation, lacking: ReadonlyMap<Part, string>): Part[] {
  const lost = withDependants(lacking.keys());
  return Array.from(wanted).filter((part) => !lost.has(part));
}

function bitsOf(parts: ReadonlySet<Part>): number {
  return PARTS.reduce((bits, part, i) => bits | (parts.has(part) ? 1 << i : 0), 0);
}

/** The parts of a number that has the supervisor's bits. */
export function partsOf(bits: number): Part[] {
  return PARTS.filter((_part, i) => bits & (1 << i));
}
