import { execFileSync } from "node:child_process";
import { readdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { root, testDirectory } from "../testing.ts";
import { thisHost } from "./host.ts";

const host = thisHost(undefined);

test("without a group it has no files, and tells no CPUs", () => {
  expect(host.has("io.bfq.weight")).toBe(false);
  expect(host.allowed("cpuset.cpus")).toBeUndefined();
});

test("it has the files of the group that jobs' groups are made in", () => {
  using group = testDirectory();
  writeFileSync(join(group.path, "io.bfq.weight"), "");
  writeFileSync(join(group.path, "cpuset.cpus.effective"), "0-1\n");
  const host = thisHost(group.path);
  expect([host.has("io.bfq.weight"), host.has("io.weight")]).toEqual([true, false]);
  expect([host.allowed("cpuset.cpus"), host.allowed("cpuset.mems")]).toEqual(["0-1", undefined]);
});

test("its huge pages are called as the kernel's own directories count them", () => {
  const kib = host.pageSizes().map((size) => {
    const [, count, unit = ""] = /^(\d+)(KB|MB|GB)$/.exec(size) ?? [];
    return Number(count) * 1024 ** ["KB", "MB", "GB"].indexOf(unit);
  });
  const told = readdirSync("/sys/kernel/mm").includes("hugepages") ? readdirSync("/sys/kernel/mm/hugepages") : [];
  expect(kib.map((size) => `hugepages-${size}kB`).toSorted()).toEqual(told.toSorted());
});

describe("a path", () => {
  test.each(["/dev/null", "/", "/no/such/device", "", "dev/vda", "/proc/self/status", "/dev/\0"])(
    "that is no block device, as %j, is no disk",
    (path) => {
      expect(host.disk(path)).toBeUndefined();
    },
  );

  test.runIf(root)("of a block device is its number, through links too", () => {
    using directory = testDirectory();
    // Nobody opens them: which numbers are in use here does not matter.
    for (const [major, minor] of [
      [7, 250],
      [259, 70_000],
      [4000, 3],
    ]) {
      const path = join(directory.path, `${major}-${minor}`);
      execFileSync("mknod", [path, "b", String(major), String(minor)]);
      symlinkSync(path, `${path}-link`);
      expect([path, `${path}-link`].map((each) => host.disk(each))).toEqual([`${major}:${minor}`, `${major}:${minor}`]);
    }
  });
});
