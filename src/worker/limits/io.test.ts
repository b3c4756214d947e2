import { describe, expect, test } from "vitest";
import type { LinuxBlockIO } from "../model/resources.ts";
import { refused } from "../testing/worker.ts";
import { settingsOf } from "./settings.ts";
import { bfq, testHost } from "./testing/host.ts";

function written(blockIO: LinuxBlockIO, is = {}): string[] {
  return settingsOf({ blockIO }, testHost(is)).map(({ file, value }) => `${file} ${value}`);
}

describe("weight", () => {
  // The vectors of opencontainers/cgroups.
  test.each([
    [10, 1],
    [100, 910],
    [500, 4950],
    [1000, 10_000],
  ])("%d is io.weight %d, and itself for BFQ", (weight, converted) => {
    expect(written({ weight })).toEqual([`io.weight ${converted}`]);
    expect(written({ weight }, bfq)).toEqual([`io.bfq.weight ${weight}`]);
  });

  test.each([0, 9, 1001, 10.5, Number.NaN])("%d is refused", async (weight) => {
    expect(await refused(() => written({ weight }))).toMatchObject({ field: "resources.blockIO.weight" });
  });

  test("of a device needs BFQ", async () => {
    const weightDevice = [{ major: 8n, minor: 16n, weight: 20 }];
    expect(written({ weight: 10, weightDevice }, bfq)).toEqual(["io.bfq.weight 10", "io.bfq.weight 8:16 20"]);
    const field = "resources.blockIO.weightDevice[0]";
    expect(await refused(() => written({ weightDevice }))).toMatchObject({ code: "unsupported", field });
    const bare = { major: 8n, minor: 16n };
    expect(await refused(() => written({ weightDevice: [bare] }, bfq))).toMatchObject({ field: `${field}.weight` });
    expect(
      await refused(() => written({ weightDevice: [{ ...bare, weight: 10, leafWeight: 10 }] }, bfq)),
    ).toMatchObject({ code: "unsupported", field: `${field}.leafWeight` });
  });
});

describe("a throttle", () => {
  test("is written to io.max, one device and one rate with each write; 0 means no limit", () => {
    const device = { major: 8n, minor: 0n };
    expect(
      written({
        throttleWriteIOPSDevice: [{ ...device, rate: 4n }],
        throttleReadIOPSDevice: [{ ...device, rate: 3n }],
        throttleWriteBpsDevice: [{ ...device, rate: 0n }],
        throttleReadBpsDevice: [
          { ...device, rate: 1n },
          { major: 4095n, minor: 1_048_575n, rate: 2n ** 64n - 1n },
        ],
      }),
    ).toEqual([
      "io.max 8:0 rbps=1",
      "io.max 4095:1048575 rbps=18446744073709551615",
      "io.max 8:0 wbps=max",
      "io.max 8:0 riops=3",
      "io.max 8:0 wiops=4",
    ]);
  });

  test("of a path is written for the whole disk", () => {
    const of = (path: string): LinuxBlockIO => ({
      throttleReadBpsDevice: [{ major: 0n, minor: 0n, path, rate: 1n }],
    });
    expect(written(of("/dev/sda"))).toEqual(["io.max 8:0 rbps=1"]);
    expect(written(of("/dev/sda1"))).toEqual(["io.max 8:0 rbps=1"]);
  });

  test.each([
    ["path", { path: "/dev/null", major: 0n, minor: 0n }],
    ["path", { path: "", major: 0n, minor: 0n }],
    ["path", { path: "/dev/sda", major: 8n, minor: 0n }],
    ["path", { path: "/dev/sda", major: 0n, minor: 1n }],
    ["major", { major: -1n, minor: 0n }],
    ["major", { major: 4096n, minor: 0n }],
    ["minor", { major: 0n, minor: 1_048_576n }],
    ["rate", { major: 8n, minor: 0n, rate: -1n }],
    ["rate", { major: 8n, minor: 0n, rate: 2n ** 64n }],
  ])("is refused by its %s: %o", async (field, device) => {
    const fine = { major: 8n, minor: 0n, rate: 1n };
    expect(await refused(() => written({ throttleWriteBpsDevice: [fine, { rate: 1n, ...device }] }))).toMatchObject({
      code: "invalid",
      field: `resources.blockIO.throttleWriteBpsDevice[1].${field}`,
    });
  });
});
