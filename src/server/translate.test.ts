import { describe, expect, test } from "vitest";
import { LinuxResources as ProtoResources } from "../../proto/generated/jobs/v1/resources.ts";
import {
  Job as ProtoJob,
  ListRequest,
  LogCompression,
  LogKeep,
  LogPolicy,
  Network,
  Source,
  StartRequest,
  State,
  StatsRequest,
  StopRequest,
  StreamRequest,
} from "../../proto/generated/jobs/v1/worker.ts";
import type { How, JobLog } from "../worker/model/job.ts";
import { JOB } from "./testing/server.ts";
import { toLogPolicy } from "./translate-log.ts";
import { fromResources, toResources } from "./translate-resources.ts";
import { fromJob, toJobSpec, toListFilter, toStatsOptions, toStop, toStreamOptions } from "./translate.ts";

const EVERYTHING = ProtoResources.fromPartial({
  devices: [
    { allow: false },
    { allow: true, type: "c", major: 1n, minor: 3n, access: "rwm" },
    { allow: true, path: "/dev/fuse" },
  ],
  memory: { limit: -1n, reservation: 1n, swap: 2n, kernel: 3n, kernelTcp: 4n, swappiness: 5n, disableOomKiller: false },
  cpu: { shares: 1024n, quota: -1n, period: 100000n, cpus: "0-3", idle: 0n },
  pids: { limit: 0n },
  blockIo: {
    weight: 10,
    weightDevice: [{ path: "/dev/sdb", weight: 20 }],
    throttleReadBpsDevice: [{ major: 8n, minor: 0n, rate: 1n }],
    throttleWriteIopsDevice: [{ rate: 2n, path: "/dev/sda" }],
  },
  hugepageLimits: [{ pageSize: "2MB", limit: 1n }],
  network: { classId: 1, priorities: [{ name: "eth0", priority: 2 }] },
  rdma: new Map([["mlx5_1", { hcaHandles: 3 }]]),
  unified: new Map([["memory.high", "max"]]),
});

describe("a start", () => {
  test("has only what the request has", () => {
    const spec = toJobSpec(StartRequest.fromPartial({ command: "ls", args: ["-l"], resources: {} }), "ada");
    expect(spec).toStrictEqual({
      command: "ls",
      args: ["-l"],
      env: new Map(),
      labels: new Map(),
      owner: "ada",
      resources: {},
    });
  });

  test.each([
    [{ command: "ls", argvBytes: [Buffer.from("ls")] }, "argv_bytes"],
    [{ args: ["-l"], argvBytes: [Buffer.from("ls")] }, "argv_bytes"],
    [{ command: "ls", cwd: "/", cwdBytes: Buffer.from("/") }, "cwd_bytes"],
    [{ command: "ls", environBytes: [Buffer.from("A")] }, "environ_bytes[0]"],
    [{ command: "ls", env: new Map([["A", ""]]), environBytes: [Buffer.from("A=1")] }, "environ_bytes[0]"],
    [{ command: "ls", environBytes: [Buffer.from("A=1"), Buffer.from("A=2")] }, "environ_bytes[1]"],
  ])("that gives a field twice, or half of it, is refused by the field's name: %j", (request, field) => {
    expect(() => toJobSpec(StartRequest.fromPartial(request), "ada")).toThrow(
      expect.objectContaining({ code: "invalid", field }),
    );
  });

  test("merges stderr where asked to, and its job tells so", () => {
    const spec = toJobSpec(StartRequest.fromPartial({ command: "ls", mergeOutput: true }), "ada");
    expect(spec.mergeOutput).toBe(true);
    expect(fromJob({ ...JOB, mergeOutput: true }).mergeOutput).toBe(true);
  });

  test("has all that the request has", () => {
    const rest = { command: "ls", cwd: "/tmp", user: "u", group: "g", requestId: "r" };
    const maps = { env: new Map([["A", "1"]]), labels: new Map([["b", "2"]]) };
    const request = StartRequest.fromPartial({ ...rest, ...maps, timeLimit: { seconds: 1n, nanos: 500_000_001 } });
    expect(toJobSpec(request, "ada")).toStrictEqual({ ...rest, ...maps, args: [], owner: "ada", timeLimitMs: 1501 });
  });

  test("keeps every limit apart, absent from zero", () => {
    expect(toResources(EVERYTHING)).toStrictEqual({
      devices: [
        { allow: false },
        { allow: true, type: "c", major: 1n, minor: 3n, access: "rwm" },
        { allow: true, path: "/dev/fuse" },
      ],
      memory: {
        limit: -1n,
        reservation: 1n,
        swap: 2n,
        kernel: 3n,
        kernelTCP: 4n,
        swappiness: 5n,
        disableOOMKiller: false,
      },
      cpu: { shares: 1024n, quota: -1n, period: 100000n, cpus: "0-3", idle: 0n },
      pids: { limit: 0n },
      blockIO: {
        weight: 10,
        weightDevice: [{ major: 0n, minor: 0n, path: "/dev/sdb", weight: 20 }],
        throttleReadBpsDevice: [{ major: 8n, minor: 0n, rate: 1n }],
        throttleWriteIOPSDevice: [{ major: 0n, minor: 0n, rate: 2n, path: "/dev/sda" }],
      },
      hugepageLimits: [{ pageSize: "2MB", limit: 1n }],
      network: { classID: 1, priorities: [{ name: "eth0", priority: 2 }] },
      rdma: { mlx5_1: { hcaHandles: 3 } },
      unified: { "memory.high": "max" },
    });
  });

  test("has the log policy that is asked for, with zero apart from absent, and its job tells it", () => {
    const log = {
      limit: 0n,
      keep: LogKeep.LOG_KEEP_OLDEST,
      compression: LogCompression.LOG_COMPRESSION_OFF,
      archive: false,
      keepFor: { seconds: 60n, nanos: 500_000_000 },
    };
    const policy = { limitBytes: 0, keep: "oldest", compress: "off", archive: false, keepForMs: 60_500 } as const;
    expect(toJobSpec(StartRequest.fromPartial({ command: "ls", log }), "ada").log).toStrictEqual(policy);
    expect(toJobSpec(StartRequest.fromPartial({ command: "ls", log: {} }), "ada").log).toStrictEqual({});
    expect(fromJob({ ...JOB, logPolicy: policy }).logPolicy).toEqual(log);
    // A client of a later version may have other values in fields 2 and 3.
    for (const [field, ...bytes] of [
      ["log.keep", 0x10, 7],
      ["log.compression", 0x18, 7],
    ] as const) {
      const wrong = LogPolicy.decode(Buffer.from(bytes));
      expect(() => toLogPolicy(wrong)).toThrow(expect.objectContaining({ code: "invalid", field }));
    }
    expect(() => toLogPolicy({ ...log, keepFor: { seconds: -1n, nanos: 0 } })).toThrow(
      expect.objectContaining({ code: "invalid", field: "log.keep_for" }),
    );
  });

  test("tells where a job's log is", () => {
    const at = new Date(1000);
    const told = (log: JobLog) => fromJob({ ...JOB, log }).log;
    expect(told({ kind: "kept", bytes: 5, due: true })).toEqual({ place: 1, bytes: 5n, since: undefined, why: "" });
    expect(told({ kind: "archived", at, compressed: true })).toEqual({ place: 3, bytes: 0n, since: at, why: "" });
    expect(told({ kind: "pruned", at, bytes: 5, why: "age" })).toEqual({ place: 4, bytes: 5n, since: at, why: "age" });
  });

  test("has the isolation that is asked for, and its job tells it", () => {
    const request = StartRequest.fromPartial({
      command: "ls",
      network: Network.NETWORK_NONE,
      privateTmp: true,
      allowUserNamespaces: true,
      rlimits: [
        { name: "nofile", soft: 1n, hard: 2n },
        { name: "core", soft: 0n },
      ],
      umask: 0,
      oomScoreAdj: 5,
    });
    const asked = {
      network: "none",
      privateTmp: true,
      userNamespaces: true,
      rlimits: [
        { name: "nofile", soft: 1, hard: 2 },
        { name: "core", soft: 0 },
      ],
      umask: 0,
      oomScoreAdj: 5,
    } as const;
    expect(toJobSpec(request, "ada")).toStrictEqual({
      command: "ls",
      args: [],
      env: new Map(),
      labels: new Map(),
      owner: "ada",
      ...asked,
    });
    const { isolation } = fromJob({ ...JOB, ...asked, isolation: ["pid", "no-capabilities"] });
    expect(isolation).toEqual({
      parts: ["pid", "no-capabilities"],
      network: Network.NETWORK_NONE,
      privateTmp: true,
      userNamespaces: true,
      rlimits: [
        { name: "nofile", soft: 1n, hard: 2n },
        { name: "core", soft: 0n, hard: undefined },
      ],
      umask: 0,
      oomScoreAdj: 5,
    });
  });

  test("tells its limits as they were asked for", () => {
    const back = ProtoResources.encode(fromResources(toResources(EVERYTHING))).finish();
    expect(Buffer.from(back)).toEqual(Buffer.from(ProtoResources.encode(EVERYTHING).finish()));
  });
});

describe("a request is refused by its field's name", () => {
  const never = new AbortController().signal;
  const stream = (request: Parameters<typeof StreamRequest.fromPartial>[0]) => () =>
    toStreamOptions(StreamRequest.fromPartial(request), never);
  test.each<[string, () => unknown]>([
    ["time_limit", () => toJobSpec(StartRequest.fromPartial({ timeLimit: { seconds: -1n } }), "ada")],
    ["time_limit", () => toJobSpec(StartRequest.fromPartial({ timeLimit: { nanos: -1 } }), "ada")],
    ["time_limit", () => toJobSpec(StartRequest.fromPartial({ timeLimit: { seconds: 2n ** 60n } }), "ada")],
    ["network", () => toJobSpec(StartRequest.decode(Buffer.of(11 << 3, 9)), "ada")],
    ["rlimits", () => toJobSpec(StartRequest.fromPartial({ rlimits: [{ name: "as", soft: 2n ** 60n }] }), "ada")],
    ["grace", () => toStop(StopRequest.fromPartial({ grace: { seconds: 0n, nanos: 1_000_000_000 } }))],
    ["interval", () => toStatsOptions(StatsRequest.fromPartial({ interval: { seconds: -1n } }), never)],
    [
      "states[1]",
      () => toListFilter(ListRequest.fromPartial({ states: [State.STATE_ENDED, State.STATE_UNSPECIFIED] })),
    ],
    ["sources[0]", stream({ sources: [Source.SOURCE_UNSPECIFIED] })],
    ["offset", stream({ position: { $case: "offset", value: 2n ** 53n } })],
    ["tail_lines", stream({ position: { $case: "tailLines", value: 2n ** 64n - 1n } })],
  ])("%s", (field, translate) => {
    expect(translate).toThrow(expect.objectContaining({ code: "invalid", field }));
  });
});

test("a stop, a list and a stream have the defaults that the proto promises", () => {
  expect(toStop(StopRequest.fromPartial({}))).toStrictEqual({});
  expect(toStop(StopRequest.fromPartial({ signal: 2, grace: {} }))).toStrictEqual({ signal: 2, graceMs: 0 });
  expect(toListFilter(ListRequest.fromPartial({}))).toStrictEqual({ limit: 100 });
  expect(
    toListFilter(ListRequest.fromPartial({ limit: 5000, states: [State.STATE_RUNNING], pageToken: "p" })),
  ).toStrictEqual({
    limit: 1000,
    states: ["running"],
    pageToken: "p",
  });
  const { signal } = new AbortController();
  expect(toStatsOptions(StatsRequest.fromPartial({}), signal)).toStrictEqual({ signal });
  const both = [Source.SOURCE_STDERR, Source.SOURCE_STDOUT];
  expect(toStreamOptions(StreamRequest.fromPartial({ sources: both, follow: true }), signal)).toStrictEqual({
    follow: true,
    times: false,
    signal,
  });
  const tail = StreamRequest.fromPartial({
    sources: [Source.SOURCE_STDERR],
    times: true,
    position: { $case: "tailBytes", value: 0n },
  });
  expect(toStreamOptions(tail, signal)).toStrictEqual({
    follow: false,
    times: true,
    signal,
    source: "stderr",
    position: { kind: "tail-bytes", count: 0 },
  });
});

describe("a job", () => {
  test("is told with its times and its usage, without fields that are not known", () => {
    const told = fromJob({
      ...JOB,
      timeLimitMs: 1500,
      usage: {
        elapsedMs: 90_061_001.25,
        cpuUserUs: 1_999_999,
        cpuSystemUs: 0,
        memoryPeakBytes: 2 ** 40,
        cpuThrottledPeriods: 3,
        memorySwapBytes: 0,
        oomGroupKills: 1,
        ioReadOperations: 7,
        processesMaxEvents: 2,
        memoryPressure: { some: { avg10: 12.34, avg60: 0, avg300: 0.5, totalUs: 1_500_000 } },
        fromCgroup: true,
      },
      output: { size: 2 ** 40, first: 1, dropped: 2 },
    });
    expect(ProtoJob.decode(ProtoJob.encode(told).finish())).toMatchObject({
      id: JOB.id,
      state: State.STATE_RUNNING,
      timeLimit: { seconds: 1n, nanos: 500_000_000 },
      createdAt: JOB.createdAt,
      startedAt: undefined,
      ended: undefined,
      usage: {
        elapsed: { seconds: 90_061n, nanos: 1_250_000 },
        cpuUser: { seconds: 1n, nanos: 999_999_000 },
        cpuThrottled: undefined,
        memoryPeak: 2n ** 40n,
        oomKills: undefined,
        cpuPeriods: undefined,
        cpuThrottledPeriods: 3n,
        memorySwap: 0n,
        oomGroupKills: 1n,
        ioReadOperations: 7n,
        ioWriteOperations: undefined,
        processesMaxEvents: 2n,
        cpuPressure: undefined,
        memoryPressure: {
          some: { avg10: 12.34, avg60: 0, avg300: 0.5, total: { seconds: 1n, nanos: 500_000_000 } },
          full: undefined,
        },
      },
      output: { size: 2n ** 40n, first: 1n, dropped: 2n },
    });
  });

  test.each<[How, string, object]>([
    [{ kind: "exited", code: 3 }, "exited", { code: 3 }],
    [{ kind: "signalled", signal: 9, coreDumped: true }, "signalled", { signal: 9, coreDumped: true }],
    [{ kind: "stopped", by: "ada", escalated: true }, "stopped", { by: "ada", escalated: true }],
    [{ kind: "timed-out", limitMs: 10 }, "timedOut", { limit: { seconds: 0n, nanos: 10_000_000 } }],
    [{ kind: "out-of-memory", kills: 2 }, "outOfMemory", { kills: 2n, wholeJob: false, ofOwner: false }],
    [{ kind: "out-of-memory", kills: 1, wholeJob: true }, "outOfMemory", { kills: 1n, wholeJob: true, ofOwner: false }],
    [{ kind: "out-of-memory", kills: 1, ofOwner: true }, "outOfMemory", { kills: 1n, wholeJob: false, ofOwner: true }],
    [{ kind: "lost", reason: "reboot" }, "lost", { reason: "reboot" }],
  ])("tells how it ended: %o", (how, $case, value) => {
    const told = fromJob({ ...JOB, state: "ended", ended: { how, exitCode: -1, signal: 9, killed: 1 } });
    expect(told.ended).toEqual({ how: { $case, value }, exitCode: -1, signal: 9, killed: 1 });
  });
});
