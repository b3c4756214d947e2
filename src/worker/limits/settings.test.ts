import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { isRoot } from "../../testing/root.ts";
import type { LinuxResources } from "../model/resources.ts";
import { finished, modes, refused, run, testWorker } from "../testing/worker.ts";
import { CONTROLLERS, type Host } from "./setting.ts";
import { settingsOf } from "./settings.ts";
import { bfq, testHost } from "./testing/host.ts";

/** What would be written, as lines of `file value`. */
function written(resources: LinuxResources): string[] {
  return settingsOf(resources, testHost()).map(({ file, value }) => `${file} ${value}`);
}

test("pids.limit becomes pids.max: -1 is no limit, 0 lets the job not fork, and absent writes nothing", () => {
  expect(written({ pids: { limit: 7n } })).toEqual(["pids.max 7"]);
  expect(written({ pids: { limit: -1n } })).toEqual(["pids.max max"]);
  expect(written({ pids: { limit: 0n } })).toEqual(["pids.max 1"]);
  expect(written({ pids: {} })).toEqual([]);
});

/** Every field that is converted. */
const EVERYTHING: LinuxResources = {
  unified: { "memory.high": "1", "misc.max": "sev 1" },
  rdma: { mlx5_1: { hcaHandles: 1, hcaObjects: 2 } },
  hugepageLimits: [{ pageSize: "2MB", limit: 0n }],
  cpu: { shares: 2n, quota: 1000n, period: 1000n, burst: 0n, idle: 0n, cpus: "0", mems: "0" },
  blockIO: {
    weight: 10,
    weightDevice: [{ major: 8n, minor: 0n, weight: 10 }],
    throttleReadBpsDevice: [{ major: 8n, minor: 0n, rate: 1n }],
    throttleWriteBpsDevice: [{ major: 8n, minor: 0n, rate: 2n }],
    throttleReadIOPSDevice: [{ major: 8n, minor: 0n, rate: 3n }],
    throttleWriteIOPSDevice: [{ major: 0n, minor: 0n, path: "/dev/sda1", rate: 0n }],
  },
  memory: { limit: 8192n, swap: 8192n, reservation: 4096n, checkBeforeUpdate: true },
  pids: { limit: 1n },
};

test("all fields are written in the order of opencontainers/cgroups", () => {
  expect(settingsOf(EVERYTHING, testHost(bfq)).map(({ file, value }) => `${file} ${value}`)).toEqual([
    "pids.max 1",
    "memory.swap.max 0",
    "memory.max 8192",
    "memory.oom.group 1",
    "memory.low 4096",
    "io.bfq.weight 10",
    "io.bfq.weight 8:0 10",
    "io.max 8:0 rbps=1",
    "io.max 8:0 wbps=2",
    "io.max 8:0 riops=3",
    "io.max 8:0 wiops=max",
    "cpu.idle 0",
    "cpu.weight 1",
    "cpu.max 1000 1000",
    "cpu.max.burst 0",
    "cpuset.cpus 0",
    "cpuset.mems 0",
    "hugetlb.2MB.max 0",
    "hugetlb.2MB.rsvd.max 0",
    "rdma.max mlx5_1 hca_handle=1 hca_object=2",
    "memory.high 1",
    "misc.max sev 1",
  ]);
});

test("when nothing is asked for, nothing is written", () => {
  expect(settingsOf({}, testHost())).toEqual([]);
  expect(
    settingsOf(
      { cpu: {}, memory: {}, pids: {}, devices: [], blockIO: {}, network: {}, rdma: {}, unified: {} },
      testHost(),
    ),
  ).toEqual([]);
});

describe("a value that is not a limit is refused, naming its field", () => {
  test.each<[string, LinuxResources]>([
    ...[0n, -2n, -(2n ** 63n), 2n ** 63n].flatMap((value): [string, LinuxResources][] => [
      ["memory.limit", { memory: { limit: value } }],
      ["memory.reservation", { memory: { reservation: value } }],
      ["memory.swap", { memory: { limit: -1n, swap: value } }],
      ["cpu.quota", { cpu: { quota: value } }],
      ["cpu.period", { cpu: { period: value } }],
      ["cpu.shares", { cpu: { shares: value } }],
    ]),
    ["pids.limit", { pids: { limit: -2n } }],
    ["cpu.shares", { cpu: { shares: 1n } }],
    ["cpu.shares", { cpu: { shares: 262145n } }],
    ["cpu.quota", { cpu: { quota: 999n } }],
    ["cpu.quota", { cpu: { quota: 2n ** 44n } }],
    ["cpu.period", { cpu: { period: 999n } }],
    ["cpu.period", { cpu: { period: 1_000_001n } }],
    ["cpu.period", { cpu: { period: -1n } }],
    ["pids.limit", { pids: { limit: 4_194_305n } }],
  ])("%s: %o", async (field, resources) => {
    const error = await refused(() => settingsOf(resources, testHost()));
    expect(error).toMatchObject({ code: "invalid", field: `resources.${field}` });
    expect(error.message).toContain(`resources.${field}: `);
  });
});

/** Every field of OCI's LinuxResources that is not converted, and why. */
const UNSUPPORTED: readonly (readonly [string, string, LinuxResources])[] = [
  ["memory.kernel", "cgroup v2 has no file", { memory: { kernel: 1n } }],
  ["memory.kernelTCP", "cgroup v2 has no file", { memory: { kernelTCP: 1n } }],
  ["memory.swappiness", "cgroup v2 has no file", { memory: { swappiness: 0n } }],
  ["memory.disableOOMKiller", "cgroup v2 has no file", { memory: { disableOOMKiller: false } }],
  ["memory.useHierarchy", "cgroup v2 has no file", { memory: { useHierarchy: true } }],
  ["cpu.realtimeRuntime", "cgroup v2 has no file", { cpu: { realtimeRuntime: 1n } }],
  ["cpu.realtimePeriod", "cgroup v2 has no file", { cpu: { realtimePeriod: 1n } }],
  ["blockIO.leafWeight", "cgroup v2 has no file", { blockIO: { leafWeight: 10 } }],
  ["network.classID", "cgroup v2 has no file", { network: { classID: 0 } }],
  ["network.priorities", "cgroup v2 has no file", { network: { priorities: [{ name: "lo", priority: 1 }] } }],
  // A caller without types can ask for anything.
  ["memory.size", "not supported", { memory: Object.fromEntries([["size", 1n]]) }],
  ["gpus", "not supported", Object.fromEntries([["gpus", 1]])],
];

test.each(UNSUPPORTED)(
  "%s is refused, naming the field, alone and beside all fields that are supported",
  async (name, why, resources) => {
    for (const asked of [
      resources,
      {
        ...EVERYTHING,
        ...resources,
        cpu: { ...EVERYTHING.cpu, ...resources.cpu },
        memory: { ...EVERYTHING.memory, ...resources.memory },
        blockIO: { ...EVERYTHING.blockIO, ...resources.blockIO },
      },
    ]) {
      const error = await refused(() => settingsOf(asked, testHost(bfq)));
      expect(error).toMatchObject({ code: "unsupported", field: `resources.${name}` });
      expect(error.message).toContain(`resources.${name}: ${why}`);
    }
  },
);

describe("whatever is asked for", () => {
  // Values around every edge, and anywhere.
  const edges = [-1n, 0n, 1n, 2n, 1000n, 100_000n, 262_144n, 1_000_000n, 4_194_304n].concat(
    [44n, 53n, 63n, 64n].map((power) => 2n ** power),
  );
  const quantity = fc.oneof(
    fc.constantFrom(...edges.flatMap((edge) => [edge - 1n, edge, edge + 1n])),
    fc.bigInt(-(2n ** 64n), 2n ** 64n),
    { arbitrary: fc.bigInt(1n, 300_000n), weight: 4 },
  );
  const some = <T>(shape: { [K in keyof T]: fc.Arbitrary<T[K]> }) => fc.record(shape, { requiredKeys: [] });
  /** Mostly right values, because one wrong field of forty is enough. */
  const mostly = <T>(right: fc.Arbitrary<T>, ...rest: fc.Arbitrary<T>[]): fc.Arbitrary<T> =>
    fc.oneof({ arbitrary: right, weight: 60 }, ...rest);
  const amount = (least: bigint, most: bigint) => mostly(fc.bigInt(least, most), quantity);
  const small = (least: number, most: number) =>
    mostly(fc.integer({ min: least, max: most }), fc.integer({ min: -1, max: most + 1 }), fc.double());
  const list = (...right: string[]) => mostly(fc.constantFrom(...right), fc.constantFrom("0-63", ""), fc.string());
  const device = fc.oneof(
    fc.record({ major: amount(0n, 4095n), minor: amount(0n, 1000n) }),
    fc.record({
      major: fc.constant(0n),
      minor: mostly(fc.constant(0n), fc.constant(1n)),
      path: mostly(fc.constantFrom("/dev/sda", "/dev/sda1"), fc.constantFrom("/dev/null", "x")),
    }),
  );
  const throttles = fc.array(
    fc.tuple(device, amount(0n, 2n ** 64n - 1n)).map(([device, rate]) => Object.assign({}, device, { rate })),
    { maxLength: 2 },
  );
  const weightDevice = fc
    .tuple(
      device,
      mostly<{ weight?: number; leafWeight?: number }>(
        some({ weight: small(10, 1000) }),
        some({ leafWeight: small(10, 1000) }),
      ),
    )
    .map(([device, weights]) => Object.assign({}, device, weights));
  const names = mostly(
    fc.constantFrom("memory.high", "io.max", "hugetlb.2MB.max", "cpu.max", "misc.max"),
    fc.constantFrom("cgroup.procs", "../cpu.max"),
    fc.string(),
  );
  const memory = {
    limit: amount(4096n, 8192n),
    reservation: amount(1n, 2n ** 63n - 1n),
    swap: amount(8192n, 2n ** 63n - 1n),
    checkBeforeUpdate: fc.boolean(),
  };
  const cpu = {
    shares: amount(2n, 262_144n),
    quota: amount(1000n, 300_000n),
    period: amount(1000n, 1_000_000n),
    burst: amount(0n, 1000n),
    idle: fc.constantFrom(0n, 1n),
  };
  const v1Memory = { kernel: quantity, kernelTCP: quantity, swappiness: quantity, useHierarchy: fc.boolean() };
  const resources: fc.Arbitrary<LinuxResources> = some<LinuxResources>({
    devices: fc.array(fc.record({ allow: fc.boolean() })),
    pids: some({ limit: amount(0n, 4_194_304n) }),
    memory: mostly<NonNullable<LinuxResources["memory"]>>(some(memory), some(v1Memory)),
    cpu: mostly<NonNullable<LinuxResources["cpu"]>>(
      some({ ...cpu, cpus: list("0", "0-3", "8,0-1"), mems: list("0", "0-1") }),
      some({ ...cpu, realtimeRuntime: quantity, realtimePeriod: quantity }),
    ),
    blockIO: some({
      weight: small(10, 1000),
      weightDevice: fc.array(weightDevice, { maxLength: 1 }),
      throttleReadBpsDevice: throttles,
      throttleWriteBpsDevice: throttles,
      throttleReadIOPSDevice: throttles,
      throttleWriteIOPSDevice: throttles,
    }),
    hugepageLimits: fc.array(
      fc.record({ pageSize: mostly(fc.constantFrom("2MB", "1GB"), fc.string()), limit: amount(0n, 2n ** 64n - 1n) }),
      { maxLength: 2 },
    ),
    network: mostly<NonNullable<LinuxResources["network"]>>(fc.constant({}), some({ classID: small(0, 1) })),
    rdma: fc.dictionary(
      mostly(fc.constantFrom("mlx5_1", "mlx5_2"), fc.string()),
      mostly<{ hcaHandles?: number; hcaObjects?: number }>(
        fc.record({ hcaHandles: small(0, 2 ** 31 - 1) }),
        some({ hcaObjects: small(0, 2 ** 31 - 1) }),
      ),
      { maxKeys: 2 },
    ),
    unified: fc.dictionary(names, mostly(fc.constantFrom("max", "1\n2\n", "8:0 rbps=1"), fc.string()), { maxKeys: 2 }),
  });
  const host: fc.Arbitrary<Host> = fc
    .tuple(fc.boolean(), fc.boolean())
    .map(([hasBfq, told]) => testHost({ ...(hasBfq && bfq), ...(!told && { allowed: () => undefined }) }));

  const within = (value: string | undefined, least: bigint, most: bigint): boolean =>
    value !== undefined && /^\d+$/.test(value) && BigInt(value) >= least && BigInt(value) <= most;
  const atMost = (least: bigint, most: bigint) => (value: string) => value === "max" || within(value, least, most);
  const bytes = atMost(1n, 2n ** 63n - 1n);
  const cpuMax = /^(max|\d+) (\d+)$/;
  /** What the kernel's parsers accept: cgroup-v2.rst, kernel/sched/core.c, kernel/cgroup/pids.c, mm/page_counter.c. */
  const SYNTAX: Readonly<Record<string, (value: string) => boolean>> = {
    "pids.max": atMost(1n, 4_194_304n),
    "memory.swap.max": atMost(0n, 2n ** 63n - 1n),
    "memory.max": bytes,
    "memory.oom.group": (value) => value === "1",
    "memory.low": bytes,
    "io.weight": (value) => within(value, 1n, 10_000n),
    "io.bfq.weight": (value) => /^(\d+:\d+ )?\d{2,4}$/.test(value) && within(value.split(" ").at(-1), 10n, 1000n),
    "io.max": (value) => {
      const [, rate] = /^\d+:\d+ [rw](?:bps|iops)=(max|\d+)$/.exec(value) ?? [];
      return rate === "max" || within(rate, 1n, 2n ** 64n - 1n);
    },
    "cpu.idle": (value) => /^[01]$/.test(value),
    "cpu.weight": (value) => within(value, 1n, 10_000n),
    "cpu.max": (value) => {
      const [, quota, period] = cpuMax.exec(value) ?? [];
      return (quota === "max" || within(quota, 1000n, 2n ** 44n - 1n)) && within(period, 1000n, 1_000_000n);
    },
    "cpu.max.burst": (value) => within(value, 0n, 2n ** 44n - 1n),
    "cpuset.cpus": (value) => /^[\d,-]+$/.test(value),
    "cpuset.mems": (value) => /^[\d,-]+$/.test(value),
    "hugetlb.2MB.max": (value) => within(value, 0n, 2n ** 64n - 1n),
    "hugetlb.2MB.rsvd.max": (value) => within(value, 0n, 2n ** 64n - 1n),
    "hugetlb.1GB.max": (value) => within(value, 0n, 2n ** 64n - 1n),
    "hugetlb.1GB.rsvd.max": (value) => within(value, 0n, 2n ** 64n - 1n),
    "rdma.max": (value) => /^[\w.:-]+( hca_(handle|object)=\d+){1,2}$/.test(value),
  };
  const ORDER = ["pids", "memory", "io", "cpu", "cpuset", "hugetlb", "rdma"];

  test("is written as the kernel reads it, in order and by known controllers, or refused, naming a field that was asked for", () => {
    let accepted = 0;
    fc.assert(
      fc.property(resources, host, (asked, host) => {
        const groups = Object.keys(asked);
        let settings;
        try {
          settings = settingsOf(asked, host);
        } catch (error) {
          expect(error).toMatchObject({
            name: "JobError",
            code: expect.stringMatching(/^(invalid|unsupported)$/),
            field: expect.toSatisfy((field: string) => groups.includes(/^resources\.(\w+)/.exec(field)?.[1] ?? "")),
          });
          return;
        }
        accepted++;
        const own = settings.filter(({ field }) => !field.startsWith("resources.unified"));
        expect(settings.slice(0, own.length)).toEqual(own);
        const places = own.map(({ controller }) => ORDER.indexOf(controller));
        expect(places).toEqual(places.toSorted((a, b) => a - b));
        for (const { file, value } of own)
          expect({ file, value, allowed: SYNTAX[file]?.(value) }).toEqual({ file, value, allowed: true });
        for (const { file, value, controller, field } of settings) {
          expect(file).toMatch(new RegExp(`^${controller}(\\.\\w+)+$`));
          expect(CONTROLLERS).toContain(controller);
          expect(value).toMatch(/^[^\n]+$/);
          expect(groups).toContain(/^resources\.(\w+)/.exec(field)?.[1]);
        }
      }),
      { numRuns: 1000 },
    );
    expect(accepted).toBeGreaterThan(100);
  });

  const WRITTEN: Readonly<Record<string, (key: string) => string>> = {
    memory: (key) => ({ limit: "memory.max", reservation: "memory.low", swap: "memory.swap.max" })[key] ?? "",
    cpu: (key) =>
      ({ shares: "cpu.weight", quota: "cpu.max", period: "cpu.max", burst: "cpu.max.burst", idle: "cpu.idle" })[key] ??
      `cpuset.${key}`,
    pids: () => "pids.max",
  };

  test("is written to its file: nothing is dropped silently", () => {
    let accepted = 0;
    const asked = some<LinuxResources>({
      pids: some({ limit: quantity }),
      memory: some({ limit: quantity, reservation: quantity, swap: quantity }),
      cpu: some({ ...cpu, idle: fc.constant(0n), cpus: fc.constant("0-3"), mems: fc.constant("0") }),
    });
    fc.assert(
      fc.property(asked, (asked) => {
        let files: string[];
        try {
          files = settingsOf(asked, testHost()).map(({ file }) => file);
        } catch {
          return;
        }
        accepted++;
        expect(new Set(files).size).toBe(files.length);
        for (const [group, values] of Object.entries(asked))
          for (const key of Object.keys(values)) expect(files).toContain(WRITTEN[group]?.(key));
      }),
      { numRuns: 3000 },
    );
    expect(accepted).toBeGreaterThan(100);
  });
});

describe.each(modes)("limits %s", (_mode, options) => {
  test.each<[string, string, LinuxResources, string, string]>([
    ["cpu", "cpu.quota", { cpu: { quota: 50_000n } }, "cpu.max", "50000 100000"],
    ["cpu", "cpu.shares", { cpu: { shares: 512n } }, "cpu.weight", "59"],
    ["memory", "memory.limit", { memory: { limit: 64n << 20n } }, "memory.max", String(64 << 20)],
    ["pids", "pids.limit", { pids: { limit: 20n } }, "pids.max", "20"],
    ["io", "blockIO.weight", { blockIO: { weight: 10 } }, "io.weight", "default 1"],
    ["cpuset", "cpu.cpus", { cpu: { cpus: "0" } }, "cpuset.cpus", "0"],
    [
      "hugetlb",
      "hugepageLimits[0].limit",
      { hugepageLimits: [{ pageSize: "2MB", limit: 4n << 20n }] },
      "hugetlb.2MB.max",
      String(4 << 20),
    ],
    ["memory", 'unified["memory.high"]', { unified: { "memory.high": "8192" } }, "memory.high", "8192"],
    ["misc", 'unified["misc.max"]', { unified: { "misc.max": "nothing 1" } }, "misc.max", ""],
  ])(
    "need the %s controller: %s is enforced, or refused naming that controller, and nothing is left",
    async (controller, field, resources, file, value) => {
      await using worker = await testWorker(options);
      const start = () => worker.start({ ...run("true"), resources });
      if (/controllers: ([^;]*)/.exec(worker.host)?.[1]?.split(", ").includes(controller)) {
        const { job } = await start();
        expect(job.limits.get(file)).toBe(value);
        return;
      }
      const error = await refused(start);
      expect(error).toMatchObject({ code: "unsupported", field: `resources.${field}`, facts: { controller } });
      expect(error.message).toContain(`the ${controller} controller is missing`);
      expect(worker.traces()).toEqual([]);
    },
  );

  test("of devices are enforced by a program, or refused naming the field, and nothing is left", async () => {
    await using worker = await testWorker(options);
    const resources = { devices: [{ allow: true }, { allow: false, path: "/dev/zero", access: "w" }] };
    const script = "(: < /dev/zero) && echo read; (: > /dev/zero) && echo written";
    const start = () => finished(worker, { ...run("sh", "-c", script), resources });
    if (worker.cgroup !== undefined && isRoot) {
      expect((await start()).text).toMatch(/^read\n.*Operation not permitted\n$/);
      return;
    }
    const error = await refused(start);
    expect(error).toMatchObject({ code: "unsupported", field: "resources.devices" });
    if (worker.cgroup === undefined) expect(error.message).toContain("so this host enforces no device rules");
    expect(worker.traces()).toEqual([]);
  });
});

test.each<[string, LinuxResources]>([
  ["resources.devices", { devices: Array.from({ length: 257 }, () => ({ allow: true })) }],
  ["resources.unified", { unified: Object.fromEntries(Array.from({ length: 257 }, (_, i) => [`memory.${i}`, "1"])) }],
  ["resources.unified", { unified: { [`memory.${"x".repeat(5000)}`]: "1" } }],
  ["resources.unified.memory.high", { unified: { "memory.high": "1".repeat(5000) } }],
  ["resources.cpu.cpus", { cpu: { cpus: "0,".repeat(5000) } }],
])("%s beyond what any host has is refused, because it would be in every list of jobs", (field, resources) => {
  expect(() => settingsOf(resources, testHost())).toThrow(expect.objectContaining({ code: "invalid", field }));
});
