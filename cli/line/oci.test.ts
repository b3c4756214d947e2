import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { LinuxResources } from "../../proto/generated/jobs/v1/resources.ts";
import { parseResources } from "./oci.ts";
import { UsageError } from "./parse.ts";

/** As the runtime specification writes it (config-linux.md), with every field there is. */
const DOCUMENT = `{
  "devices": [{ "allow": false, "access": "rwm" }, { "allow": true, "type": "c", "major": 10, "minor": -1 }, { "allow": true, "path": "/dev/sda" }],
  "memory": {
    "limit": 9223372036854775807, "reservation": 1, "swap": -1, "kernel": -9223372036854775808, "kernelTCP": 2,
    "swappiness": 0, "disableOOMKiller": false, "useHierarchy": true, "checkBeforeUpdate": true
  },
  "cpu": {
    "shares": 18446744073709551615, "quota": -1, "burst": 3, "period": 4, "realtimeRuntime": 5, "realtimePeriod": 6,
    "cpus": "0-1", "mems": "0", "idle": 0
  },
  "pids": { "limit": 0 },
  "blockIO": {
    "weight": 10, "leafWeight": 11,
    "weightDevice": [{ "major": 8, "minor": 0, "weight": 12, "leafWeight": 13 }],
    "throttleReadBpsDevice": [{ "major": 8, "minor": 0, "rate": 14 }],
    "throttleWriteBpsDevice": [{ "path": "/dev/sda", "rate": 15 }],
    "throttleReadIOPSDevice": [{ "major": 8, "minor": 0, "rate": 16 }],
    "throttleWriteIOPSDevice": []
  },
  "hugepageLimits": [{ "pageSize": "2MB", "limit": 209715200 }],
  "network": { "classID": 1048577, "priorities": [{ "name": "eth0", "priority": 500 }] },
  "rdma": { "mlx5_1": { "hcaHandles": 3, "hcaObjects": 10000 } },
  "unified": { "hugetlb.1GB.max": "1073741824" }
}`;

/** The API's JSON, in which 64-bit numbers are strings and what is not set is absent. */
function told(text: string): unknown {
  return LinuxResources.toJSON(LinuxResources.fromPartial(parseResources("f", text)));
}

it("reads a LinuxResources document whole, and its 64-bit numbers to the last digit", () => {
  expect(told(DOCUMENT)).toEqual({
    devices: [
      { allow: false, access: "rwm" },
      { allow: true, type: "c", major: "10", minor: "-1" },
      { allow: true, path: "/dev/sda" },
    ],
    memory: {
      limit: "9223372036854775807",
      reservation: "1",
      swap: "-1",
      kernel: "-9223372036854775808",
      kernelTcp: "2",
      swappiness: "0",
      disableOomKiller: false,
      useHierarchy: true,
      checkBeforeUpdate: true,
    },
    cpu: {
      shares: "18446744073709551615",
      quota: "-1",
      burst: "3",
      period: "4",
      realtimeRuntime: "5",
      realtimePeriod: "6",
      cpus: "0-1",
      mems: "0",
      idle: "0",
    },
    pids: { limit: "0" },
    blockIo: {
      weight: 10,
      leafWeight: 11,
      weightDevice: [{ major: "8", minor: "0", weight: 12, leafWeight: 13 }],
      throttleReadBpsDevice: [{ major: "8", minor: "0", rate: "14" }],
      throttleWriteBpsDevice: [{ major: "0", minor: "0", path: "/dev/sda", rate: "15" }],
      throttleReadIopsDevice: [{ major: "8", minor: "0", rate: "16" }],
    },
    hugepageLimits: [{ pageSize: "2MB", limit: "209715200" }],
    network: { classId: 1048577, priorities: [{ name: "eth0", priority: 500 }] },
    rdma: { mlx5_1: { hcaHandles: 3, hcaObjects: 10000 } },
    unified: { "hugetlb.1GB.max": "1073741824" },
  });
  expect(told("{}")).toEqual({});
});

describe("a document is refused by the file's name and the field's", () => {
  it.each([
    ['{ "memroy": {} }', "memroy is not a field; give one of devices, memory, cpu,"],
    ['{ "memory": { "Limit": 1 } }', "memory.Limit is not a field; give one of limit, reservation,"],
    ['{ "cpu": { "toString": 1 } }', "cpu.toString is not a field"],
    ['{ "__proto__": {} }', "__proto__ is not a field"],
    [
      '{ "blockIO": { "throttleReadBpsDevice": [{ "major": 8, "minr": 0 }] } }',
      "blockIO.throttleReadBpsDevice[0].minr is not a field; give one of major, minor, path, rate",
    ],
    ['{ "memory": { "limit": "256M" } }', "memory.limit is not a whole number from -9223372036854775808"],
    ['{ "memory": { "limit": 1.5 } }', "memory.limit is not a whole number"],
    ['{ "memory": { "limit": 9223372036854775808 } }', "memory.limit is not a whole number"],
    ['{ "cpu": { "shares": -1 } }', "cpu.shares is not a whole number from 0 to 18446744073709551615"],
    ['{ "blockIO": { "weight": 4294967296 } }', "blockIO.weight is not a whole number from 0 to 4294967295"],
    ['{ "cpu": { "cpus": 0 } }', "cpu.cpus is not a string"],
    ['{ "cpu": { "cpus": null } }', "cpu.cpus is not a string"],
    ['{ "memory": { "useHierarchy": 1 } }', "memory.useHierarchy is not true or false"],
    ['{ "hugepageLimits": {} }', "hugepageLimits is not a list"],
    ['{ "rdma": { "mlx5_1": 1 } }', "rdma.mlx5_1 is not an object"],
    ['{ "unified": [] }', "unified is not an object"],
    ["[]", "the document is not an object"],
    ["null", "the document is not an object"],
    ["7", "the document is not an object"],
    ["{", "is not JSON: "],
    ["", "is not JSON: "],
  ])("%s: %s", (text, message) => {
    expect(() => parseResources("limits.json", text)).toThrow(UsageError);
    expect(() => parseResources("limits.json", text)).toThrow(`limits.json: ${message}`);
  });

  it("whatever it is", () => {
    const keys = fc.constantFrom("memory", "limit", "cpu", "unified", "blockIO", "throttleReadBpsDevice", "x");
    const { json } = fc.letrec<{ json: unknown }>((tie) => ({
      json: fc.oneof({ depthSize: "small" }, fc.jsonValue(), fc.array(tie("json")), fc.dictionary(keys, tie("json"))),
    }));
    fc.assert(
      fc.property(json, (value) => {
        try {
          told(JSON.stringify(value));
        } catch (error) {
          expect(error).toBeInstanceOf(UsageError);
        }
      }),
    );
  });
});
