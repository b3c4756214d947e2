import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { LinuxCpu } from "../model/resources.ts";
import { refused } from "../testing/worker.ts";
import { cpuWeight } from "./cpu.ts";
import { settingsOf } from "./settings.ts";
import { testHost } from "./testing/host.ts";

function written(cpu: LinuxCpu, host = testHost()): string[] {
  return settingsOf({ cpu }, host).map(({ file, value }) => `${file} ${value}`);
}

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
  expect(written({ shares })).toEqual([`cpu.weight ${weight}`]);
});

test("more shares never become less weight", () => {
  const shares = fc.bigInt(2n, 262_144n);
  fc.assert(fc.property(shares, shares, (a, b) => a > b || cpuWeight(a) <= cpuWeight(b)));
});

test.each([
  [{ quota: 50_000n, period: 200_000n }, "50000 200000"],
  [{ quota: 50_000n }, "50000 100000"],
  [{ period: 200_000n }, "max 200000"],
  [{ quota: -1n }, "max 100000"],
  [{ quota: -1n, period: 1000n }, "max 1000"],
  [{ quota: 1000n, period: 1_000_000n }, "1000 1000000"],
])("%o is cpu.max %s", (cpu, value) => {
  expect(written(cpu)).toEqual([`cpu.max ${value}`]);
});

describe("burst", () => {
  test("is written after the quota that it may not exceed", () => {
    expect(written({ burst: 20_000n, quota: 20_000n })).toEqual(["cpu.max 20000 100000", "cpu.max.burst 20000"]);
    expect(written({ burst: 0n })).toEqual(["cpu.max.burst 0"]);
  });

  test.each([
    { burst: 20_001n, quota: 20_000n },
    { burst: 2n ** 44n },
    { burst: 2n ** 43n, quota: 2n ** 43n },
    { burst: -1n },
  ])("is refused where the kernel would: %o", async (cpu) => {
    expect(await refused(() => written(cpu))).toMatchObject({ code: "invalid", field: "resources.cpu.burst" });
  });
});

describe("idle", () => {
  test("is written first, and then no weight, which the kernel refuses for an idle group", () => {
    expect(written({ shares: 512n, idle: 1n, quota: 1000n })).toEqual(["cpu.idle 1", "cpu.max 1000 100000"]);
    expect(written({ shares: 512n, idle: 0n })).toEqual(["cpu.idle 0", "cpu.weight 59"]);
  });

  test("is 0 or 1, and shares are checked although they are not written", async () => {
    for (const idle of [-1n, 2n])
      expect(await refused(() => written({ idle }))).toMatchObject({ field: "resources.cpu.idle" });
    expect(await refused(() => written({ idle: 1n, shares: 1n }))).toMatchObject({ field: "resources.cpu.shares" });
  });
});

describe("cpus and mems", () => {
  test.each(["0", "0-3", "8,0-2", "3-3,11"])("%s is written unchanged", (cpus) => {
    expect(written({ cpus, mems: "1" })).toEqual([`cpuset.cpus ${cpus}`, "cpuset.mems 1"]);
  });

  test.each(["", " 0", "0\n", "0-", "a", "3-1", "0,,1", "-1", "0-3:1/2", "12345678"])(
    "%j is not a list",
    async (cpus) => {
      expect(await refused(() => written({ cpus }))).toMatchObject({ code: "invalid", field: "resources.cpu.cpus" });
    },
  );

  test.each(["4", "0-4", "3-8", "0,12"])(
    "%s is refused when only 0-3,8-11 may be given, and the message says so",
    async (cpus) => {
      const error = await refused(() => written({ cpus }));
      expect(error).toMatchObject({ code: "unsupported", field: "resources.cpu.cpus" });
      expect(error.message).toContain("0-3,8-11");
      expect(await refused(() => written({ mems: "2" }))).toMatchObject({ field: "resources.cpu.mems" });
    },
  );

  test("are not checked when the kernel does not tell which there are", () => {
    expect(written({ cpus: "99" }, testHost({ allowed: () => undefined }))).toEqual(["cpuset.cpus 99"]);
  });
});
