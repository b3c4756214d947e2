import { describe, expect, test } from "vitest";
import type { LinuxResources } from "../model/resources.ts";
import { refused } from "../testing/worker.ts";
import { affected, merged } from "./merge.ts";
import { settingsOf } from "./settings.ts";
import { testHost } from "./testing/host.ts";

function after(old: LinuxResources, update: LinuxResources): LinuxResources {
  return merged(old, update, testHost());
}

/** What would be written for an update, as `file value` lines. */
function written(old: LinuxResources, update: LinuxResources): string[] {
  return settingsOf(affected(after(old, update), update), testHost()).map(({ file, value }) => `${file} ${value}`);
}

describe("what is kept after an update", () => {
  test.each<[string, LinuxResources, LinuxResources, LinuxResources]>([
    [
      "what is absent stays",
      { pids: { limit: 1n } },
      { cpu: { shares: 2n } },
      { pids: { limit: 1n }, cpu: { shares: 2n } },
    ],
    [
      "a group's fields one by one",
      { memory: { limit: 1n, swap: 3n } },
      { memory: { limit: 2n, checkBeforeUpdate: true } },
      { memory: { limit: 2n, swap: 3n, checkBeforeUpdate: true } },
    ],
    [
      "one rate of a device, known by whatever name",
      {
        blockIO: {
          weight: 10,
          throttleReadBpsDevice: [
            { major: 8n, minor: 0n, rate: 1n },
            { major: 8n, minor: 16n, rate: 2n },
          ],
        },
      },
      { blockIO: { throttleReadBpsDevice: [{ major: 0n, minor: 0n, path: "/dev/sda1", rate: 3n }] } },
      {
        blockIO: {
          weight: 10,
          throttleReadBpsDevice: [
            { major: 8n, minor: 16n, rate: 2n },
            { major: 0n, minor: 0n, path: "/dev/sda1", rate: 3n },
          ],
        },
      },
    ],
    [
      "one size of huge pages",
      {
        hugepageLimits: [
          { pageSize: "2MB", limit: 1n },
          { pageSize: "1GB", limit: 2n },
        ],
      },
      { hugepageLimits: [{ pageSize: "2MB", limit: 3n }] },
      {
        hugepageLimits: [
          { pageSize: "1GB", limit: 2n },
          { pageSize: "2MB", limit: 3n },
        ],
      },
    ],
    [
      "one figure of an RDMA device",
      { rdma: { a: { hcaHandles: 1, hcaObjects: 2 }, b: { hcaHandles: 3 } } },
      { rdma: { a: { hcaHandles: 4 } } },
      { rdma: { a: { hcaHandles: 4, hcaObjects: 2 }, b: { hcaHandles: 3 } } },
    ],
    [
      "a file by its own name, of a device's file the other devices",
      { unified: { "memory.high": "1", "io.max": "8:0 rbps=1\n8:16 rbps=2", constructor: "1" } },
      { unified: { "memory.high": "max", "io.max": "8:0 wbps=3" } },
      { unified: { "memory.high": "max", "io.max": "8:16 rbps=2\n8:0 wbps=3", constructor: "1" } },
    ],
    [
      "rules for devices, which the update does not name",
      { devices: [{ allow: false }] },
      {},
      { devices: [{ allow: false }] },
    ],
  ])("is %s", (_what, old, update, expected) => {
    expect(after(old, update)).toStrictEqual(expected);
  });
});

describe("what an update writes", () => {
  test.each<[LinuxResources, LinuxResources, string[]]>([
    [{ memory: { limit: 100n, swap: 150n } }, { memory: { reservation: 1n } }, ["memory.low 1"]],
    [
      { memory: { limit: 100n, swap: 150n } },
      { memory: { limit: 120n } },
      ["memory.swap.max 30", "memory.max 120", "memory.oom.group 1"],
    ],
    [{ cpu: { quota: 5000n, period: 20_000n, shares: 2n } }, { cpu: { quota: 6000n } }, ["cpu.max 6000 20000"]],
    [{ cpu: { quota: 5000n } }, { cpu: { period: 20_000n } }, ["cpu.max 5000 20000"]],
    [{ cpu: { shares: 512n, idle: 1n } }, { cpu: { idle: 0n } }, ["cpu.idle 0", "cpu.weight 59"]],
    [{ cpu: { idle: 1n } }, { cpu: { shares: 512n } }, ["cpu.idle 1"]],
    [{ cpu: { cpus: "0", shares: 2n } }, { cpu: { cpus: "1" } }, ["cpuset.cpus 1"]],
  ])("of %o, for %o, is %j", (old, update, expected) => {
    expect(written(old, update)).toEqual(expected);
  });

  test("is refused when it does not fit with a limit that stays, and that limit's field is named", async () => {
    const burst = { cpu: { quota: 5000n, burst: 4000n } };
    expect(await refused(() => written(burst, { cpu: { quota: 3000n } }))).toMatchObject({
      field: "resources.cpu.burst",
    });
    const swap = { memory: { limit: 100n, swap: 150n } };
    expect(await refused(() => written(swap, { memory: { limit: 200n } }))).toMatchObject({
      field: "resources.memory.swap",
    });
    expect(await refused(() => written({}, { memory: { swap: 1n } }))).toMatchObject({
      field: "resources.memory.swap",
    });
  });
});
