import { readFileSync } from "node:fs";
import { reasonOf } from "../../src/os/errno.ts";
import { type Resources, parseResources } from "./oci.ts";
import { parseCount, parseCpus, parseDevice, parseIoMax, parseLimitBytes, UsageError } from "./parse.ts";
import { type Given, optional } from "./program.ts";

const THROTTLES = {
  rbps: "throttleReadBpsDevice",
  wbps: "throttleWriteBpsDevice",
  riops: "throttleReadIopsDevice",
  wiops: "throttleWriteIopsDevice",
} as const;

/**
 * Returns the limits that `--resources` and the flags ask for; undefined when there are none. A flag overrides the file's
 * field. Throws UsageError.
 */
export function resources(given: Given): Resources | undefined {
  const file = optional(given, "resources", readResources) ?? {};
  const devices = given.list("device").map((text) => parseDevice("--device", text));
  const asked = {
    ...file,
    // A later rule overrides an earlier one, so the flags' rules stand behind the file's.
    ...(devices.length > 0 && { devices: [...(file.devices ?? []), ...devices] }),
    ...group("cpu", file.cpu, {
      ...optional(given, "cpus", parseCpus),
      shares: optional(given, "cpu-shares", (flag, text) => parseCount(flag, text, 2)),
      cpus: given.text("cpuset-cpus"),
      mems: given.text("cpuset-mems"),
    }),
    ...group("memory", file.memory, {
      limit: optional(given, "memory", parseLimitBytes),
      reservation: optional(given, "memory-reservation", parseLimitBytes),
      swap: optional(given, "memory-swap", parseLimitBytes),
    }),
    ...group("pids", file.pids, { limit: optional(given, "pids", (flag, text) => parseCount(flag, text, -1)) }),
    ...group("blockIo", file.blockIo, {
      weight: optional(given, "io-weight", (flag, text) => Number(parseCount(flag, text, 10))),
      ...throttles(given, file.blockIo),
    }),
  };
  return Object.keys(asked).length > 0 ? asked : undefined;
}

/** The fields that are given, over those of the file; nothing where there are none. */
function group<Name extends string, Fields extends object>(
  name: Name,
  file: Fields | undefined,
  flags: { readonly [Key in keyof Fields]?: Fields[Key] | undefined },
): { readonly [Key in Name]?: Fields };
function group(name: string, file: object | undefined, flags: object): object {
  const given = Object.entries(flags).filter(([, value]) => value !== undefined);
  if (given.length === 0 && file === undefined) return {};
  return { [name]: { ...file, ...Object.fromEntries(given) } };
}

/** Returns the file's rates with the flags' behind them: the kernel keeps the later one of two for a device. */
function throttles(given: Given, file: Resources["blockIo"]): NonNullable<Resources["blockIo"]> {
  const lists: Partial<Record<(typeof THROTTLES)[keyof typeof THROTTLES], object[]>> = {};
  for (const text of given.list("io-max")) {
    const { rates, ...device } = parseIoMax("--io-max", text);
    for (const [key, rate] of rates) {
      const list = THROTTLES[key];
      lists[list] = [...(lists[list] ?? file?.[list] ?? []), { ...device, rate }];
    }
  }
  return lists;
}

function readResources(flag: string, file: string): Resources {
  const name = file === "-" ? "stdin" : file;
  let text: string;
  try {
    text = file === "-" ? readStdin() : readFileSync(file, "utf8");
  } catch (error) {
    throw new UsageError(`${flag}: ${name} cannot be read: ${reasonOf(error)}`);
  }
  return parseResources(`${flag} ${name}`, text);
}

/** All that can be read from stdin; also where another program has made it non-blocking. */
function readStdin(): string {
  try {
    return readFileSync(0, "utf8");
  } catch (error) {
    if (!(error instanceof Error && "code" in error && error.code === "EAGAIN")) throw error;
    return readFileSync("/dev/stdin", "utf8");
  }
}
