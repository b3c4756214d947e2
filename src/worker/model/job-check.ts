import type { Ended, How, Job, LogPolicy, NamedRlimit, OutputExtent, Pressure, Stall, Usage } from "./job.ts";

/* Checks that what was read from a disk, which may be damaged, is the record of a job. */

type Check = (value: unknown) => boolean;
/** A check for each field. */
type Checks<T> = { readonly [K in keyof Required<T>]: Check };

/** The longest google.protobuf.Duration. */
const MOST_MS = 315_576_000_000_000;
/** The years of google.protobuf.Timestamp, 1 to 9999. */
const [FIRST_MS, LAST_MS] = [-62_135_596_800_000, 253_402_300_799_999];

const text: Check = (value) => typeof value === "string";
const flag: Check = (value) => typeof value === "boolean";
const whole: Check = Number.isSafeInteger;
const count: Check = (value) => whole(value) && Number(value) >= 0;
/** The kernel counts bytes in 64 bits. Numbers above the safe integers are approximate. */
const amount: Check = (value) => typeof value === "number" && value >= 0 && value < 2 ** 63;
const uint32: Check = (value) => count(value) && Number(value) < 2 ** 32;
const int32: Check = (value) => whole(value) && Math.abs(Number(value)) < 2 ** 31;
export const bytes: Check = (value) => Number.isInteger(value) && amount(value);
const duration: Check = (value) => typeof value === "number" && value >= 0 && value <= MOST_MS;
const average: Check = (value) => typeof value === "number";
/** A time that google.protobuf.Timestamp can express. */
export const date: Check = (value) =>
  value instanceof Date && value.getTime() >= FIRST_MS && value.getTime() <= LAST_MS;
const oneOf =
  (...known: readonly unknown[]): Check =>
  (value) =>
    known.includes(value);
const optional =
  (check: Check): Check =>
  (value) =>
    value === undefined || check(value);
const listOf =
  (check: Check): Check =>
  (value) =>
    Array.isArray(value) && value.every(check);
const texts: Check = (value) => value instanceof Map && value.entries().every(([key, each]) => text(key) && text(each));

/** Returns a function that finds the name of the first wrong field. */
function wrongIn<T>(checks: Checks<T>): (value: unknown) => string | undefined {
  const entries = Object.entries<Check>(checks);
  return (value) => {
    if (typeof value !== "object" || value === null) return "all of it";
    return entries.find(([key, check]) => !check(Reflect.get(value, key)))?.[0];
  };
}

function shape<T>(checks: Checks<T>): Check {
  const find = wrongIn(checks);
  return (value) => find(value) === undefined;
}

type HowOf<K extends How["kind"]> = Extract<How, { readonly kind: K }>;
const kind = text;
const HOWS: { readonly [K in How["kind"]]: Check } = {
  exited: shape<HowOf<"exited">>({ kind, code: int32 }),
  signalled: shape<HowOf<"signalled">>({ kind, signal: int32, coreDumped: flag }),
  stopped: shape<HowOf<"stopped">>({ kind, by: text, escalated: flag }),
  "timed-out": shape<HowOf<"timed-out">>({ kind, limitMs: duration }),
  "out-of-memory": shape<HowOf<"out-of-memory">>({ kind, kills: count, wholeJob: optional(flag) }),
  lost: shape<HowOf<"lost">>({ kind, reason: text }),
};

const how: Check = (value) =>
  Object.entries(HOWS).some(([name, check]) => check(value) && Reflect.get(Object(value), "kind") === name);

const ended = shape<Ended>({ how, exitCode: int32, signal: int32, killed: uint32 });
const stall = shape<Stall>({ avg10: average, avg60: average, avg300: average, totalUs: duration });
const pressure = optional(shape<Pressure>({ some: stall, full: optional(stall) }));
const figure = optional(amount);

const usage = shape<Usage>({
  elapsedMs: duration,
  cpuUserUs: amount,
  cpuSystemUs: amount,
  cpuThrottledUs: figure,
  memoryCurrentBytes: figure,
  memoryPeakBytes: figure,
  ioReadBytes: figure,
  ioWriteBytes: figure,
  processes: figure,
  processesPeak: figure,
  memoryMaxEvents: figure,
  oomKills: figure,
  cpuPeriods: figure,
  cpuThrottledPeriods: figure,
  memorySwapBytes: figure,
  memoryLowEvents: figure,
  memoryHighEvents: figure,
  oomEvents: figure,
  oomGroupKills: figure,
  ioReadOperations: figure,
  ioWriteOperations: figure,
  processesMaxEvents: figure,
  cpuPressure: pressure,
  memoryPressure: pressure,
  ioPressure: pressure,
  fromCgroup: flag,
});

const logPolicy = shape<LogPolicy>({
  limitBytes: figure,
  keep: optional(oneOf("newest", "oldest")),
  compress: optional(oneOf("off", "zstd")),
  archive: optional(flag),
  keepForMs: optional(duration),
});

const int64: Check = (value) => typeof value === "bigint" && BigInt.asIntN(64, value) === value;
const uint64: Check = (value) => typeof value === "bigint" && BigInt.asUintN(64, value) === value;
/** A part of `resources`: what it has is of its field's kind, and what has no such field is none of ours. */
function part(fields: Readonly<Record<string, Check>>): Check {
  return (value) =>
    typeof value === "object" &&
    value !== null &&
    !Array.isArray(value) &&
    Object.entries(value).every(([key, each]) => each === undefined || fields[key]?.(each) === true);
}

const named =
  (check: Check): Check =>
  (value) =>
    typeof value === "object" && value !== null && !Array.isArray(value) && Object.values(value).every(check);
const both =
  (one: Check, other: Check): Check =>
  (value) =>
    one(value) && other(value);
const has =
  (...keys: readonly string[]): Check =>
  (value) =>
    keys.every((key) => Reflect.get(Object(value), key) !== undefined);
const throttle = listOf(
  both(part({ major: int64, minor: int64, rate: uint64, path: text }), has("major", "minor", "rate")),
);
const weight = both(
  part({ major: int64, minor: int64, weight: uint32, leafWeight: uint32, path: text }),
  has("major", "minor"),
);

const resources = part({
  devices: listOf(
    both(part({ allow: flag, type: text, major: int64, minor: int64, access: text, path: text }), has("allow")),
  ),
  memory: part({
    limit: int64,
    reservation: int64,
    swap: int64,
    kernel: int64,
    kernelTCP: int64,
    swappiness: uint64,
    disableOOMKiller: flag,
    useHierarchy: flag,
    checkBeforeUpdate: flag,
  }),
  cpu: part({
    shares: uint64,
    quota: int64,
    burst: uint64,
    period: uint64,
    realtimeRuntime: int64,
    realtimePeriod: uint64,
    cpus: text,
    mems: text,
    idle: int64,
  }),
  pids: part({ limit: int64 }),
  blockIO: part({
    weight: uint32,
    leafWeight: uint32,
    weightDevice: listOf(weight),
    throttleReadBpsDevice: throttle,
    throttleWriteBpsDevice: throttle,
    throttleReadIOPSDevice: throttle,
    throttleWriteIOPSDevice: throttle,
  }),
  hugepageLimits: listOf(both(part({ pageSize: text, limit: uint64 }), has("pageSize", "limit"))),
  network: part({
    classID: uint32,
    priorities: listOf(both(part({ name: text, priority: uint32 }), has("name", "priority"))),
  }),
  rdma: named(part({ hcaHandles: uint32, hcaObjects: uint32 })),
  unified: named(text),
});

const JOB: Checks<Omit<Job, "log">> = {
  id: text,
  state: oneOf("starting", "running", "stopping", "ended"),
  command: text,
  args: listOf(text),
  envNames: listOf(text),
  cwd: text,
  user: text,
  group: text,
  labels: texts,
  timeLimitMs: optional(duration),
  resources: optional(resources),
  isolation: optional(listOf(text)),
  network: optional(oneOf("host", "none")),
  privateTmp: optional(flag),
  mergeOutput: optional(flag),
  userNamespaces: optional(flag),
  rlimits: optional(listOf(shape<NamedRlimit>({ name: text, soft: figure, hard: figure }))),
  umask: optional(uint32),
  oomScoreAdj: optional(int32),
  limits: texts,
  owner: text,
  pid: both(int32, count),
  birth: optional(text),
  createdAt: date,
  startedAt: optional(date),
  endedAt: optional(date),
  ended: optional(ended),
  usage: optional(usage),
  output: shape<OutputExtent>({ size: bytes, first: bytes, dropped: bytes }),
  logPolicy: optional(logPolicy),
  warnings: listOf(text),
  damaged: optional(text),
};
const findWrong = wrongIn(JOB);

/** The job that `value` is. Throws SyntaxError, which names the field that is not what it has to be. */
export function jobIn(value: unknown): Job {
  const wrong = findWrong(value);
  if (wrong !== undefined) throw new SyntaxError(`${wrong} is not what a job's is`);
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- that is what has been looked at
  return value as Job;
}
