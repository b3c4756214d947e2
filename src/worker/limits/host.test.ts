import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { basename, join, relative } from "node:path";
import { describe, expect, test } from "vitest";
import { isRoot, needsRoot, unless } from "../../testing/root.ts";
import { testDirectory } from "../testing/worker.ts";
import { thisHost } from "./host.ts";

const host = thisHost(undefined);

function command(name: string, ...args: string[]): string {
  return execFileSync(name, args).toString().trim();
}

/** Containers have root without. */
function hasLoop(): boolean {
  try {
    return isRoot && command("losetup", "--find") !== "";
  } catch {
    return false;
  }
}

test("a host without cgroup v2 has no files, and does not tell which CPUs jobs may have", () => {
  expect(host.has("io.bfq.weight")).toBe(false);
  expect(host.allowed("cpuset.cpus")).toBeUndefined();
});

test("a job's group has the files of its parent", () => {
  using group = testDirectory();
  writeFileSync(join(group.path, "io.bfq.weight"), "");
  writeFileSync(join(group.path, "cpuset.cpus.effective"), "0-1\n");
  const host = thisHost(group.path);
  expect([host.has("io.bfq.weight"), host.has("io.weight")]).toEqual([true, false]);
  expect([host.allowed("cpuset.cpus"), host.allowed("cpuset.mems")]).toEqual(["0-1", undefined]);
});

test("sizes of huge pages are named after the kernel's directories", () => {
  const kib = host.pageSizes().map((size) => {
    const [, count, unit = ""] = /^(\d+)(KB|MB|GB)$/.exec(size) ?? [];
    return Number(count) * 1024 ** ["KB", "MB", "GB"].indexOf(unit);
  });
  const told = readdirSync("/sys/kernel/mm").includes("hugepages") ? readdirSync("/sys/kernel/mm/hugepages") : [];
  expect(kib.map((size) => `hugepages-${size}kB`).toSorted()).toEqual(told.toSorted());
});

describe("a path", () => {
  test.each(["/dev/null", "/", "/no/such/device", "", "dev/vda", "/proc/self/status", "/dev/\0"])(
    "that is not a block device, as %j, is not a disk",
    (path) => {
      expect(host.disk(path)).toBeUndefined();
    },
  );

  test("of a device leads to its type and number, and any other path to nothing", () => {
    expect(host.device("/dev/null")).toEqual({ type: "c", major: 1n, minor: 3n });
    for (const path of ["/", "/no/such/device", "", "dev/null", "/proc/self/status", "/dev/\0"])
      expect(host.device(path)).toBeUndefined();
  });

  test("of a block device leads to its number, also through links", needsRoot, () => {
    using directory = testDirectory();
    // Nobody opens them: which numbers are in use here does not matter.
    for (const [major, minor] of [
      [7, 250],
      [259, 70_000],
      [4000, 3],
    ]) {
      const path = join(directory.path, `${major}-${minor}`);
      command("mknod", path, "b", String(major), String(minor));
      symlinkSync(path, `${path}-link`);
      expect(host.disk(relative(process.cwd(), path))).toBeUndefined();
      expect([path, `${path}-link`].map((each) => host.disk(each))).toEqual([`${major}:${minor}`, `${major}:${minor}`]);
      expect(host.device(path)).toEqual({ type: "b", major: BigInt(major ?? 0), minor: BigInt(minor ?? 0) });
    }
  });

  test(
    "of a partition leads to its whole disk's number",
    unless(hasLoop() ? undefined : "no loop device can be had"),
    () => {
      using directory = testDirectory();
      const [image, partition] = [join(directory.path, "image"), join(directory.path, "partition")];
      writeFileSync(image, Buffer.alloc(4 << 20));
      const disk = command("losetup", "--find", "--show", image);
      try {
        // Without a table, which this kernel may have no parser for.
        command("addpart", disk, "1", "2048", "4096");
        const number = readFileSync(`/sys/class/block/${basename(disk)}p1/dev`, "utf8").trim();
        command("mknod", partition, "b", ...number.split(":"));
        expect(host.disk(partition)).not.toBe(number);
        expect(host.disk(partition)).toBe(readFileSync(`/sys/class/block/${basename(disk)}/dev`, "utf8").trim());
      } finally {
        command("delpart", disk, "1");
        command("losetup", "--detach", disk);
      }
    },
  );
});
