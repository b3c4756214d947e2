import type { Device, Host } from "../setting.ts";

/** A host for tests: eight CPUs, two memory nodes, a disk with a partition, io.weight and no BFQ. */
export function testHost(is: Partial<Host> = {}): Host {
  const disks: Readonly<Record<string, string>> = { "/dev/sda": "8:0", "/dev/sda1": "8:0" };
  const devices: Readonly<Record<string, Device>> = {
    "/dev/sda": { type: "b", major: 8n, minor: 0n },
    "/dev/fuse": { type: "c", major: 10n, minor: 229n },
  };
  return {
    has: (file) => file === "io.weight",
    pageSizes: () => ["2MB", "1GB"],
    allowed: (file) => (file === "cpuset.cpus" ? "0-3,8-11" : "0-1"),
    device: (path) => devices[path],
    disk: (path) => disks[path],
    ...is,
  };
}

/** A host that has BFQ's file beside io.weight. */
export const bfq: Partial<Host> = { has: () => true };
