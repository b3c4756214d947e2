import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { cpuWeight, settingsOf, type LinuxResources } from "./resources.ts";
import { modes, refused, run, testWorker } from "./testing.ts";

/** What would be written, as `file value` lines. */
function written(resources: LinuxResources): string[] {
  return settingsOf(resources).map(({ file, value }) => `${file} ${value}`);
}

describe("cpu", () => {
  // The vectors of opencontainers/cgroups and crun.
  test.each([
    [2n, 1n],
    [3n, 2n],
    [100n, 17n],
    [256n, 35n],
    [512n, 59n],
    [1000n, 99n],
    [1024n, 100n],
    [2048n, 174n],
    [4096n, 303n],
    [65536n, 3023n],
    [262143n, 10000n],
    [262144n, 10000n],
  ])("%d shares are a weight of %d", (shares, weight) => {
    expect(cpuWeight(shares)).toBe(weight);
    expect(written({ cpu: { shares } })).toEqual([`cpu.weight ${weight}`]);
  });

  test.each([
    [{ quota: 50_000n, period: 200_000n }, "50000 200000"],
    [{ quota: 50_000n }, "50000 100000"],
    [{ period: 200_000n }, "max 200000"],
    [{ quota: -1n }, "max 100000"],
    [{ quota: -1n, period: 1000n }, "max 1000"],
    [{ quota: 1000n, period: 1_000_000n }, "1000 1000000"],
  ])("%o is cpu.max %s", (cpu, value) => {
    expect(written({ cpu })).toEqual([`cpu.max ${value}`]);
  });
});

describe("memory", () => {
  const MIB = 1024n * 1024n;
  test.each<[LinuxResources["memory"] & object, string[]]>([
    [{ limit: MIB }, ["memory.max 1048576", "memory.oom.group 1"]],
    [{ limit: -1n }, ["memory.max max"]],
    [{ reservation: MIB }, ["memory.low 1048576"]],
    [{ reservation: -1n }, ["memory.low max"]],
    [{ limit: MIB, swap: 3n * MIB }, ["memory.swap.max 2097152", "memory.max 1048576", "memory.oom.group 1"]],
    [{ limit: MIB, swap: MIB }, ["memory.swap.max 0", "memory.max 1048576", "memory.oom.group 1"]],
    [{ limit: MIB, swap: -1n }, ["memory.swap.max max", "memory.max 1048576", "memory.oom.group 1"]],
    [{ limit: -1n, swap: MIB }, ["memory.swap.max 1048576", "memory.max max"]],
    [{ swap: -1n }, ["memory.swap.max max"]],
    [{ limit: 2n ** 53n + 1n }, ["memory.max 9007199254740993", "memory.oom.group 1"]],
  ])("%o is written swap first, and the whole job is one victim where there is a limit", (memory, files) => {
    expect(written({ memory })).toEqual(files);
  });

  test("swap below the limit that it includes, or without one, is refused", async () => {
    for (const memory of [{ limit: MIB, swap: MIB - 1n }, { swap: MIB }])
      expect(await refused(() => settingsOf({ memory }))).toMatchObject({
        code: "invalid",
        field: "resources.memory.swap",
      });
  });
});

test("pids.limit is pids.max, and -1 is none", () => {
  expect(written({ pids: { limit: 7n } })).toEqual(["pids.max 7"]);
  expect(written({ pids: { limit: -1n } })).toEqual(["pids.max max"]);
});

test("pids come first, then memory, then cpu", () => {
  const files = settingsOf({ cpu: { shares: 2n }, memory: { limit: 4096n }, pids: { limit: 1n } });
  expect(files.map(({ controller }) => controller)).toEqual(["pids", "memory", "memory", "cpu"]);
});

test("nothing asked for is nothing written", () => {
  expect(settingsOf({})).toEqual([]);
  expect(settingsOf({ cpu: {}, memory: {}, pids: {}, devices: [], blockIO: {}, unified: {} })).toEqual([]);
});

describe("a value that is no limit is refused, naming its field", () => {
  test.each<[string, LinuxResources]>([
    ...[0n, -2n, -(2n ** 63n), 2n ** 63n].flatMap((value): [string, LinuxResources][] => [
      ["memory.limit", { memory: { limit: value } }],
      ["memory.reservation", { memory: { reservation: value } }],
      ["memory.swap", { memory: { limit: -1n, swap: value } }],
      ["pids.limit", { pids: { limit: value } }],
      ["cpu.quota", { cpu: { quota: value } }],
      ["cpu.period", { cpu: { period: value } }],
      ["cpu.shares", { cpu: { shares: value } }],
    ]),
    ["cpu.shares", { cpu: { shares: 1n } }],
    ["cpu.shares", { cpu: { shares: 262145n } }],
    ["cpu.quota", { cpu: { quota: 999n } }],
    ["cpu.quota", { cpu: { quota: 2n ** 44n } }],
    ["cpu.period", { cpu: { period: 999n } }],
    ["cpu.period", { cpu: { period: 1_000_001n } }],
    ["cpu.period", { cpu: { period: -1n } }],
    ["pids.limit", { pids: { limit: 4_194_305n } }],
  ])("%s: %o", async (field, resources) => {
    const error = await refused(() => settingsOf(resources));
    expect(error).toMatchObject({ code: "invalid", field: `resources.${field}` });
    expect(error.message).toContain(`resources.${field}: `);
  });
});

/** Every field of the OCI message that is not converted yet, each alone. */
const UNSUPPORTED: readonly (readonly [string, LinuxResources])[] = [
  ["devices", { devices: [{ allow: false }] }],
  ["memory.kernel", { memory: { kernel: 1n } }],
  ["memory.kernelTCP", { memory: { kernelTCP: 1n } }],
  ["memory.swappiness", { memory: { swappiness: 0n } }],
  ["memory.disableOOMKiller", { memory: { disableOOMKiller: false } }],
  ["memory.useHierarchy", { memory: { useHierarchy: true } }],
  ["memory.checkBeforeUpdate", { memory: { checkBeforeUpdate: true } }],
  ["cpu.burst", { cpu: { burst: 1n } }],
  ["cpu.realtimeRuntime", { cpu: { realtimeRuntime: 1n } }],
  ["cpu.realtimePeriod", { cpu: { realtimePeriod: 1n } }],
  ["cpu.cpus", { cpu: { cpus: "0" } }],
  ["cpu.mems", { cpu: { mems: "0" } }],
  ["cpu.idle", { cpu: { idle: 0n } }],
  ["blockIO.weight", { blockIO: { weight: 10 } }],
  ["blockIO.leafWeight", { blockIO: { leafWeight: 10 } }],
  ["blockIO.weightDevice", { blockIO: { weightDevice: [{ major: 8n, minor: 0n, weight: 10 }] } }],
  ["blockIO.throttleReadBpsDevice", { blockIO: { throttleReadBpsDevice: [{ major: 8n, minor: 0n, rate: 1n }] } }],
  ["blockIO.throttleWriteBpsDevice", { blockIO: { throttleWriteBpsDevice: [{ major: 8n, minor: 0n, rate: 1n }] } }],
  ["blockIO.throttleReadIOPSDevice", { blockIO: { throttleReadIOPSDevice: [{ major: 8n, minor: 0n, rate: 1n }] } }],
  ["blockIO.throttleWriteIOPSDevice", { blockIO: { throttleWriteIOPSDevice: [{ major: 8n, minor: 0n, rate: 1n }] } }],
  ["hugepageLimits", { hugepageLimits: [{ pageSize: "2MB", limit: 0n }] }],
  ["network.classID", { network: { classID: 0 } }],
  ["network.priorities", { network: { priorities: [{ name: "lo", priority: 1 }] } }],
  ["rdma", { rdma: { mlx5_1: { hcaHandles: 1 } } }],
  ["unified", { unified: { "memory.high": "1" } }],
];

test.each(UNSUPPORTED)("%s is refused by name, alone and beside what is supported", async (name, resources) => {
  const supported: LinuxResources = { cpu: { shares: 2n }, memory: { limit: 4096n }, pids: { limit: 1n } };
  for (const asked of [
    resources,
    {
      ...supported,
      ...resources,
      cpu: { ...supported.cpu, ...resources.cpu },
      memory: { ...supported.memory, ...resources.memory },
    },
  ]) {
    const error = await refused(() => settingsOf(asked));
    expect(error.code).toBe("unsupported");
    const group = name.split(".")[0];
    expect([`resources.${name}`, `resources.${group}`]).toContain(error.field);
    expect(error.message).toContain(error.field);
  }
});

describe("whatever is asked for", () => {
  // Around every edge, and anywhere.
  const edges = [
    -1n,
    0n,
    1n,
    2n,
    999n,
    1000n,
    100_000n,
    262_144n,
    1_000_000n,
    4_194_304n,
    2n ** 44n,
    2n ** 53n,
    2n ** 63n,
  ];
  const quantity = fc.oneof(
    fc.constantFrom(...edges.flatMap((edge) => [edge - 1n, edge, edge + 1n])),
    fc.bigInt(-(2n ** 64n), 2n ** 64n),
    fc.bigInt(1n, 300_000n),
  );
  const group = (...keys: string[]) =>
    fc.record(Object.fromEntries(keys.map((key) => [key, quantity])), { requiredKeys: [] });
  const resources: fc.Arbitrary<LinuxResources> = fc.record(
    { cpu: group("shares", "quota", "period"), memory: group("limit", "reservation", "swap"), pids: group("limit") },
    { requiredKeys: [] },
  );

  /** What the kernel's parsers take: cgroup-v2.rst, kernel/sched/core.c, kernel/cgroup/pids.c, mm/page_counter.c. */
  const between = (value: string | undefined, least: bigint, most: bigint): boolean =>
    value !== undefined && /^\d+$/.test(value) && BigInt(value) >= least && BigInt(value) <= most;
  const SYNTAX: Readonly<Record<string, (value: string) => boolean>> = {
    "cpu.weight": (value) => between(value, 1n, 10_000n),
    "cpu.max": (value) => {
      const [quota, period, ...rest] = value.split(" ");
      return (
        (quota === "max" || between(quota, 1000n, 2n ** 44n - 1n)) &&
        between(period, 1000n, 1_000_000n) &&
        rest.length === 0
      );
    },
    "memory.max": (value) => value === "max" || between(value, 1n, 2n ** 63n - 1n),
    "memory.low": (value) => value === "max" || between(value, 1n, 2n ** 63n - 1n),
    "memory.swap.max": (value) => value === "max" || between(value, 0n, 2n ** 63n - 1n),
    "memory.oom.group": (value) => value === "1",
    "pids.max": (value) => value === "max" || between(value, 1n, 4_194_304n),
  };
  /** The file that each field ends in. */
  const FILES: Readonly<Record<string, string>> = {
    "cpu.shares": "cpu.weight",
    "cpu.quota": "cpu.max",
    "cpu.period": "cpu.max",
    "memory.limit": "memory.max",
    "memory.reservation": "memory.low",
    "memory.swap": "memory.swap.max",
    "pids.limit": "pids.max",
  };

  test("is written as the kernel reads it, all of it, once a file, or refused by a field that was asked for", () => {
    let accepted = 0;
    fc.assert(
      fc.property(resources, (asked) => {
        const fields = Object.entries(asked).flatMap(([name, values]) =>
          Object.keys(values).map((key) => `${name}.${key}`),
        );
        let settings;
        try {
          settings = settingsOf(asked);
        } catch (error) {
          expect(error).toMatchObject({
            code: "invalid",
            field: expect.toSatisfy((field: string) => fields.includes(field.slice(10))),
          });
          return;
        }
        accepted++;
        const files = settings.map(({ file }) => file);
        expect(new Set(files).size).toBe(files.length);
        for (const field of fields) expect(files).toContain(FILES[field]);
        for (const { file, value, field, controller } of settings) {
          expect({ file, value, allowed: SYNTAX[file]?.(value) }).toEqual({ file, value, allowed: true });
          expect(fields).toContain(field.slice("resources.".length));
          expect(file.startsWith(`${controller}.`)).toBe(true);
        }
      }),
      { numRuns: 3000 },
    );
    expect(accepted).toBeGreaterThan(100);
  });

  test("more shares are never less weight", () => {
    const shares = fc.bigInt(2n, 262_144n);
    fc.assert(fc.property(shares, shares, (a, b) => a > b || cpuWeight(a) <= cpuWeight(b)));
  });
});

describe.each(modes)("limits %s", (_mode, options) => {
  test.each<[string, string, LinuxResources, string, string]>([
    ["cpu", "cpu.quota", { cpu: { quota: 50_000n } }, "cpu.max", "50000 100000"],
    ["cpu", "cpu.shares", { cpu: { shares: 512n } }, "cpu.weight", "59"],
    ["memory", "memory.limit", { memory: { limit: 64n << 20n } }, "memory.max", String(64 << 20)],
    ["pids", "pids.limit", { pids: { limit: 20n } }, "pids.max", "20"],
  ])(
    "need the %s controller: %s is enforced, or refused with its name and nothing is left",
    async (controller, field, resources, file, value) => {
      await using worker = await testWorker(options);
      const start = () => worker.start({ ...run("true"), resources });
      if (worker.host.split("controllers: ")[1]?.split(", ").includes(controller)) {
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
});
