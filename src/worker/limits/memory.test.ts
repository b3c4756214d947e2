import { describe, expect, test } from "vitest";
import type { LinuxMemory, LinuxResources } from "../model/resources.ts";
import { refused } from "../testing/worker.ts";
import { settingsOf } from "./settings.ts";
import { testHost } from "./testing/host.ts";

const MIB = 1024n * 1024n;

function written(resources: LinuxResources): string[] {
  return settingsOf(resources, testHost()).map(({ file, value }) => `${file} ${value}`);
}

describe("memory", () => {
  test.each<[LinuxMemory, string[]]>([
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

  test("swap below the memory limit, which it includes, is refused, and so is swap without that limit", async () => {
    for (const memory of [{ limit: MIB, swap: MIB - 1n }, { swap: MIB }])
      expect(await refused(() => written({ memory }))).toMatchObject({
        code: "invalid",
        field: "resources.memory.swap",
      });
  });

  test.each([
    [0n, true],
    [-1n, true],
    [1n, undefined],
  ])("a kernel without swap's file keeps a limit of %d more than memory: %s", (more, optional) => {
    const memory = { limit: MIB, swap: more === -1n ? more : MIB + more };
    expect(settingsOf({ memory }, testHost())[0]).toMatchObject({ file: "memory.swap.max" });
    expect(settingsOf({ memory }, testHost())[0]?.optional).toBe(optional);
  });

  test("checkBeforeUpdate writes no file, because a new group uses no memory", () => {
    for (const checkBeforeUpdate of [true, false])
      expect(written({ memory: { reservation: MIB, checkBeforeUpdate } })).toEqual(["memory.low 1048576"]);
  });
});

describe("huge pages", () => {
  test("are limited when they are used and, if the kernel can, when they are reserved", () => {
    const hugepageLimits = [
      { pageSize: "2MB", limit: 4n * MIB },
      { pageSize: "1GB", limit: 0n },
    ];
    const of = (file: string, value: string, rest = {}): object => ({
      file,
      value,
      controller: "hugetlb",
      field: `resources.hugepageLimits[${file.includes("2MB") ? 0 : 1}].limit`,
      ...rest,
    });
    expect(settingsOf({ hugepageLimits }, testHost())).toEqual([
      of("hugetlb.2MB.max", "4194304"),
      of("hugetlb.2MB.rsvd.max", "4194304", { optional: true }),
      of("hugetlb.1GB.max", "0"),
      of("hugetlb.1GB.rsvd.max", "0", { optional: true }),
    ]);
  });

  test.each(["2M", "2048kB", "", "../2MB", "16MB"])(
    "of %j are refused, with the sizes that there are",
    async (size) => {
      const error = await refused(() => written({ hugepageLimits: [{ pageSize: size, limit: 1n }] }));
      expect(error).toMatchObject({ code: "unsupported", field: "resources.hugepageLimits[0].pageSize" });
      expect(error.message).toContain("2MB and 1GB");
    },
  );

  test("cannot have a negative limit", async () => {
    for (const limit of [-1n, 2n ** 64n])
      expect(await refused(() => written({ hugepageLimits: [{ pageSize: "2MB", limit }] }))).toMatchObject({
        code: "invalid",
        field: "resources.hugepageLimits[0].limit",
      });
  });
});
