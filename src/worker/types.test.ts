import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { examine, JobError, type JobSpec, openWorker, recoverJournal, type WorkerOptions } from "./index.ts";
import { type TestWorker, testDirectory, testWorker } from "./testing/worker.ts";

/* What a program in JavaScript can give wrong: each field, absent or of each other type. */

/** A start with every field, and options with every one. */
const SPEC: Required<JobSpec> = {
  command: "true",
  args: ["a"],
  env: new Map([["A", "b"]]),
  cwd: "/",
  user: "nobody",
  group: "nogroup",
  labels: new Map([["a", "b"]]),
  timeLimitMs: 1000,
  resources: {
    devices: [{ allow: true, type: "c", major: 1n, minor: 3n, access: "r", path: "/dev/null" }],
    memory: { limit: 2n ** 26n, reservation: 1n, swap: 1n, swappiness: 1n, disableOOMKiller: true, kernel: 1n },
    cpu: { shares: 2n, quota: 1000n, burst: 0n, period: 1000n, cpus: "0", mems: "0", idle: 0n, realtimePeriod: 1n },
    pids: { limit: 5n },
    blockIO: {
      weight: 10,
      weightDevice: [{ major: 8n, minor: 0n, weight: 10 }],
      throttleReadBpsDevice: [{ major: 8n, minor: 0n, rate: 1n }],
    },
    hugepageLimits: [{ pageSize: "2MB", limit: 1n }],
    network: { classID: 1, priorities: [{ name: "eth0", priority: 1 }] },
    rdma: { mlx: { hcaHandles: 1, hcaObjects: 1 } },
    unified: { "pids.max": "5" },
  },
  network: "host",
  privateTmp: true,
  mergeOutput: true,
  userNamespaces: false,
  rlimits: [{ name: "core", soft: 0, hard: 0 }],
  umask: 0o22,
  oomScoreAdj: 0,
  log: { limitBytes: 2 ** 20, keep: "newest", compress: "off", archive: false, keepForMs: 1000 },
  requestId: "r",
  owner: "o",
};
const OPTIONS: Required<WorkerOptions> = {
  stateDir: "state",
  name: "w",
  user: "nobody",
  jobUids: { first: 1, last: 2 },
  allowUsers: ["a"],
  allowGroups: ["a"],
  allowRoot: false,
  logLimitBytes: 2 ** 20,
  logKeep: "newest",
  logCompress: "off",
  logPrune: { ageMs: 1, count: 1, bytes: 1, free: { kind: "bytes", amount: 1 }, freeEveryMs: 1 },
  jobPrune: { ageMs: 1, count: 1, archived: true },
  compressPauses: { firstMs: 1, lastMs: 1 },
  archive: { kind: "s3", bucket: "b", prefix: "", endpoint: "http://127.0.0.1:1", region: "r", silenceMs: 1 },
  archivePauses: { firstMs: 1, lastMs: 1 },
  maxJobs: 1,
  quotas: { all: { default: { cpus: 1 }, max: { pids: 5 }, sum: { memoryBytes: 1 }, jobs: 1 }, owners: new Map() },
  cgroup: "/",
  isolationOff: ["pid"],
  allowUserNamespaces: false,
  hidden: ["/a"],
  sealed: ["/a"],
  supervisor: "/bin/true",
  meter: { started() {}, repeated() {}, refused() {}, ended() {} },
  log() {},
};

const VALUES: readonly unknown[] = [
  null,
  true,
  -1.5,
  NaN,
  "?\0",
  1n,
  Symbol("s"),
  () => {},
  {},
  [],
  [Symbol("s")],
  new Map(),
  new Map([[1, 2]]),
];

const kindOf = (value: unknown): string =>
  value === null ? "null" : Array.isArray(value) ? "array" : value instanceof Map ? "map" : typeof value;

/** Each field of a value at each depth, and this value with another in its place. */
function* wrongs(value: unknown, path = ""): Generator<readonly [field: string, wrong: unknown]> {
  if (path !== "") for (const wrong of VALUES) if (kindOf(wrong) !== kindOf(value)) yield [path, wrong];
  if (typeof value !== "object" || value === null || value instanceof Map) return;
  for (const [name, each] of Object.entries(value)) {
    const inner = Array.isArray(value) ? `${path}[${name}]` : path === "" ? name : `${path}.${name}`;
    for (const [field, wrong] of wrongs(each, inner)) {
      yield [field, Array.isArray(value) ? Object.assign([...value], { [name]: wrong }) : { ...value, [name]: wrong }];
    }
  }
}

/** What a call comes to. */
async function outcome(call: () => unknown): Promise<unknown> {
  try {
    return await call();
  } catch (error) {
    return error instanceof JobError ? `${error.code} ${error.field}` : error;
  }
}

/** Calls with each wrong value; returns what was not refused as `invalid` with the field's name. */
async function accepted(valid: object, call: (wrong: never) => unknown): Promise<string[]> {
  const odd: string[] = [];
  for (const [field, wrong] of wrongs(valid)) {
    const came = await outcome(() => call(wrong as never));
    if (typeof came !== "string" || !came.startsWith(`invalid ${field}`)) odd.push(`${field}: ${String(came)}`);
  }
  return odd;
}

let worker: TestWorker;
beforeAll(async () => {
  worker = await testWorker();
});
afterAll(() => worker[Symbol.asyncDispose]());

describe("a value of another type is refused as invalid, by the field's name, and nothing is made of it:", () => {
  test("each field of a start", async () => {
    expect(await accepted(SPEC, (spec) => worker.start(spec))).toEqual([]);
    expect(worker.traces()).toEqual([]);
  });

  test("each option of a worker", async () => {
    using directory = testDirectory();
    const options = { ...OPTIONS, stateDir: `${directory.path}/state` };
    expect(await accepted(options, (wrong) => openWorker(wrong))).toEqual([]);
  });

  test("each field of an update, a stop, a list, a stream, stats and what removes jobs", async () => {
    const id = "01m85bxjqw7ggzm1drbxxphnk6";
    expect(await accepted({ resources: SPEC.resources }, ({ resources }) => worker.update(id, resources))).toEqual([]);
    const { signal } = new AbortController();
    expect(await accepted({ signal: 15, graceMs: 0, by: "b" }, (how) => worker.stop(id, how))).toEqual([]);
    const filter = { states: ["ended"], labels: new Map(), owner: "o", limit: 1, pageToken: "t", stepMs: 1 };
    expect(await accepted(filter, (wrong) => worker.list(wrong))).toEqual([]);
    const position = { kind: "offset", offset: 0 };
    const stream = { position, follow: true, source: "stdout", times: true };
    expect(await accepted(stream, (how) => worker.stream(id, how))).toEqual([]);
    expect(await accepted({ intervalMs: 100 }, (how) => worker.stats(id, how))).toEqual([]);
    expect(await accepted({ archived: true }, (how) => worker.remove(id, how))).toEqual([]);
    const pruned = { olderThanMs: 1, ends: ["lost"], labels: new Map(), owner: "o", dryRun: true, archived: false };
    expect(await accepted(pruned, (wrong) => worker.prune(wrong, signal))).toEqual([]);
    for (const wrong of [null, 5, {}, "signal"] as never[]) {
      expect(await outcome(() => worker.prune({ olderThanMs: 1 }, wrong))).toBe("invalid signal");
      expect(await outcome(() => worker.stream(id, { signal: wrong }))).toBe("invalid signal");
      expect(await outcome(() => worker.stats(id, { signal: wrong }))).toBe("invalid signal");
      expect(await outcome(() => worker.wait(id, wrong))).toBe("invalid signal");
      expect(await outcome(() => worker.stop(id, { by: "b" }, wrong))).toBe("invalid signal");
    }
    expect(signal.aborted).toBe(false);
  });

  test("a job's id, and a state directory", async () => {
    for (const wrong of [undefined, ...VALUES].filter((value) => typeof value !== "string") as never[]) {
      const calls = [
        () => worker.query(wrong),
        () => worker.wait(wrong),
        () => worker.stop(wrong, { by: "b" }),
        () => worker.stream(wrong, {}),
        () => worker.stats(wrong, {}),
        () => worker.update(wrong, {}),
        () => worker.remove(wrong),
      ];
      for (const call of calls) expect(await outcome(call)).toBe("invalid job_id");
      expect(await outcome(() => recoverJournal(wrong))).toBe("invalid stateDir");
      if (wrong !== undefined) expect(await outcome(() => examine({ stateDir: wrong }))).toBe("invalid stateDir");
    }
  });
});

test("what may not be absent is named, and so is a field that there is not", async () => {
  expect(await outcome(() => worker.start({ command: "true" } as JobSpec))).toBe("invalid owner");
  expect(await outcome(() => worker.start({ owner: "o" } as JobSpec))).toBe("invalid command");
  expect(await outcome(() => worker.stop("id", {} as never))).toBe("invalid by");
  expect(await outcome(() => worker.list({} as never))).toBe("invalid limit");
  expect(await outcome(() => openWorker({} as WorkerOptions))).toBe("invalid stateDir");
  const misspelt = { owner: "o", command: "true", timeLimit: 5 };
  await expect(worker.start(misspelt)).rejects.toThrow(/^timeLimit: is not known; there are command, args, /);
  for (const nothing of [undefined, null, "spec", 5] as never[]) {
    const calls = [
      () => worker.start(nothing),
      () => worker.stop("id", nothing),
      () => worker.list(nothing),
      () => worker.stream("id", nothing),
      () => worker.stats("id", nothing),
      () => worker.update("id", nothing),
      () => worker.prune(nothing, new AbortController().signal),
      () => openWorker(nothing),
      () => examine(nothing),
    ];
    for (const call of calls) expect(await outcome(call)).toMatch(/^invalid /);
  }
});
