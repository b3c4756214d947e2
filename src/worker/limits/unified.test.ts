import { describe, expect, test } from "vitest";
import type { LinuxResources } from "../model/resources.ts";
import { refused } from "../testing/worker.ts";
import { settingsOf } from "./settings.ts";
import { testHost } from "./testing/host.ts";

function written(resources: LinuxResources): string[] {
  return settingsOf(resources, testHost()).map(({ file, value }) => `${file} ${value}`);
}

describe("rdma", () => {
  test("is written once for each device, with the limits that are given", () => {
    const rdma = { mlx5_1: { hcaHandles: 3, hcaObjects: 0 }, "ocrdma-0": { hcaObjects: 2 ** 31 - 1 } };
    expect(written({ rdma })).toEqual([
      "rdma.max mlx5_1 hca_handle=3 hca_object=0",
      "rdma.max ocrdma-0 hca_object=2147483647",
    ]);
  });

  test.each([
    ["mlx5_1", {}, ""],
    ["", { hcaHandles: 1 }, ""],
    ["a b", { hcaHandles: 1 }, ""],
    ["a\nb", { hcaHandles: 1 }, ""],
    ["mlx5_1", { hcaHandles: 2 ** 31 }, ".hcaHandles"],
    ["mlx5_1", { hcaObjects: -1 }, ".hcaObjects"],
  ])("%j: %o is refused", async (device, limit, field) => {
    expect(await refused(() => written({ rdma: { [device]: limit } }))).toMatchObject({
      code: "invalid",
      field: `resources.rdma[${JSON.stringify(device)}]${field}`,
    });
  });
});

describe("unified", () => {
  test("is written last, one line with each write, and overrides the fields", () => {
    const unified = { "memory.max": "8192", "io.max": "8:0 rbps=1\n8:16 wbps=2\n", "hugetlb.2MB.rsvd.max": "0" };
    expect(written({ memory: { limit: -1n }, rdma: { a: { hcaHandles: 1 } }, unified })).toEqual([
      "memory.max max",
      "rdma.max a hca_handle=1",
      "memory.max 8192",
      "io.max 8:0 rbps=1",
      "io.max 8:16 wbps=2",
      "hugetlb.2MB.rsvd.max 0",
    ]);
  });

  test("names the controller of its file, so that a missing controller can be named", () => {
    expect(settingsOf({ unified: { "misc.max": "sev 1" } }, testHost())).toEqual([
      { file: "misc.max", value: "sev 1", controller: "misc", field: 'resources.unified["misc.max"]' },
    ]);
  });

  test.each([
    "cgroup.procs",
    "cgroup.kill",
    "cgroup.freeze",
    "cgroup.subtree_control",
    "memory/../cgroup.procs",
    "memory.max/../../cgroup.procs",
    "../memory.max",
    "/memory.max",
    "memory",
    "memory.",
    "memory..max",
    "memory.max\n",
    " memory.max",
    ".max",
    "",
    "MEMORY.max",
    "devices.allow",
    "__proto__",
  ])("%j is no file that may be written", async (file) => {
    const unified = Object.fromEntries([[file, "1"]]);
    expect(await refused(() => written({ unified }))).toMatchObject({
      code: "invalid",
      field: `resources.unified[${JSON.stringify(file)}]`,
    });
  });

  test("without a line to write is refused", async () => {
    for (const value of ["", "\n"])
      expect(await refused(() => written({ unified: { "memory.high": value } }))).toMatchObject({ code: "invalid" });
  });
});
