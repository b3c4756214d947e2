import { reasonOf } from "../../src/os/errno.ts";
import type { StartInput } from "../../src/client/client.ts";
import { UsageError } from "./parse.ts";

/** The limits that a start asks for; each may be absent. */
export type Resources = NonNullable<StartInput["resources"]>;

type Shape =
  | "int64"
  | "uint64"
  | "uint32"
  | "text"
  | "boolean"
  | { readonly list: Shape }
  | { readonly map: Shape }
  | Fields;
interface Fields {
  readonly fields: Readonly<Record<string, Shape>>;
}

const DEVICE = { major: "int64", minor: "int64", path: "text" } as const;
const THROTTLE = { list: { fields: { ...DEVICE, rate: "uint64" } } } as const;

/**
 * LinuxResources in JSON: runtime-spec 1.3, schema/config-linux.json; a device and a device rule may have a `path` as well.
 */
const RESOURCES: Fields = {
  fields: {
    devices: {
      list: {
        fields: { allow: "boolean", type: "text", major: "int64", minor: "int64", access: "text", path: "text" },
      },
    },
    memory: {
      fields: {
        limit: "int64",
        reservation: "int64",
        swap: "int64",
        kernel: "int64",
        kernelTCP: "int64",
        swappiness: "uint64",
        disableOOMKiller: "boolean",
        useHierarchy: "boolean",
        checkBeforeUpdate: "boolean",
      },
    },
    cpu: {
      fields: {
        shares: "uint64",
        quota: "int64",
        burst: "uint64",
        period: "uint64",
        realtimeRuntime: "int64",
        realtimePeriod: "uint64",
        cpus: "text",
        mems: "text",
        idle: "int64",
      },
    },
    pids: { fields: { limit: "int64" } },
    blockIO: {
      fields: {
        weight: "uint32",
        leafWeight: "uint32",
        weightDevice: { list: { fields: { ...DEVICE, weight: "uint32", leafWeight: "uint32" } } },
        throttleReadBpsDevice: THROTTLE,
        throttleWriteBpsDevice: THROTTLE,
        throttleReadIOPSDevice: THROTTLE,
        throttleWriteIOPSDevice: THROTTLE,
      },
    },
    hugepageLimits: { list: { fields: { pageSize: "text", limit: "uint64" } } },
    network: {
      fields: {
        classID: "uint32",
        priorities: { list: { fields: { name: "text", priority: "uint32" } } },
      },
    },
    rdma: { map: { fields: { hcaHandles: "uint32", hcaObjects: "uint32" } } },
    unified: { map: "text" },
  },
};

/** Fields that have another name in the API's JSON. */
const RENAMED: Readonly<Record<string, string>> = {
  kernelTCP: "kernelTcp",
  disableOOMKiller: "disableOomKiller",
  blockIO: "blockIo",
  throttleReadIOPSDevice: "throttleReadIopsDevice",
  throttleWriteIOPSDevice: "throttleWriteIopsDevice",
  classID: "classId",
};

const RANGES = {
  int64: [-(2n ** 63n), 2n ** 63n - 1n],
  uint64: [0n, 2n ** 64n - 1n],
  uint32: [0n, 2n ** 32n - 1n],
} as const;

/**
 * A LinuxResources document of the OCI runtime specification, in JSON. Throws UsageError naming `file` and the field
 * that is unknown, or of another type or range; what a worker cannot enforce is the worker's to say.
 */
export function parseResources(file: string, text: string): Resources {
  let document: unknown;
  try {
    // Whole numbers as they are written: an int64 is more than a number holds.
    document = JSON.parse(text, (_key: string, value: unknown, ...[context]: { source?: string }[]) => {
      const source = context?.source ?? "";
      return typeof value === "number" && /^-?\d+$/.test(source) ? BigInt(source) : value;
    });
  } catch (error) {
    throw new UsageError(`${file}: is not JSON: ${reasonOf(error)}`);
  }
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- convert() gives what RESOURCES says, or throws
  return convert(file, "", document, RESOURCES) as Resources;
}

function convert(file: string, path: string, value: unknown, shape: Shape): unknown {
  const wrong = (right: string): UsageError => new UsageError(`${file}: ${path || "the document"} is not ${right}`);
  if (shape === "text") {
    if (typeof value === "string") return value;
    throw wrong("a string");
  }
  if (shape === "boolean") {
    if (typeof value === "boolean") return value;
    throw wrong("true or false");
  }
  if (typeof shape === "string") {
    const [least, most] = RANGES[shape];
    if (typeof value !== "bigint" || value < least || value > most)
      throw wrong(`a whole number from ${least} to ${most}`);
    return shape === "uint32" ? Number(value) : value;
  }
  if ("list" in shape) {
    if (Array.isArray(value)) return value.map((item, at) => convert(file, `${path}[${at}]`, item, shape.list));
    throw wrong("a list");
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw wrong("an object");
  const entries: [string, unknown][] = Object.entries(value);
  const within = (key: string): string => (path === "" ? key : `${path}.${key}`);
  if ("map" in shape) return new Map(entries.map(([key, item]) => [key, convert(file, within(key), item, shape.map)]));
  const converted = entries.map(([key, item]) => {
    if (!Object.hasOwn(shape.fields, key) || shape.fields[key] === undefined)
      throw new UsageError(
        `${file}: ${within(key)} is not a field; give one of ${Object.keys(shape.fields).join(", ")}`,
      );
    return [RENAMED[key] ?? key, convert(file, within(key), item, shape.fields[key])];
  });
  return Object.fromEntries(converted);
}
