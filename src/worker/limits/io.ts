import { invalid, quoted, unsupported } from "../model/errors.ts";
import type { LinuxBlockIO, LinuxThrottleDevice, LinuxWeightDevice } from "../model/resources.ts";
import { between, type Host, MAJOR_MAX, MINOR_MAX, type Setting, UINT64_MAX } from "./setting.ts";

const BFQ = "io.bfq.weight";
export const THROTTLES = [
  ["throttleReadBpsDevice", "rbps"],
  ["throttleWriteBpsDevice", "wbps"],
  ["throttleReadIOPSDevice", "riops"],
  ["throttleWriteIOPSDevice", "wiops"],
] as const;

/**
 * Converts blkio.weight (10 to 1000) to io.weight (1 to 10000): opencontainers/cgroups, ConvertBlkIOToIOWeightValue.
 * blkio's default of 500 becomes 4950, and not 100, io.weight's default.
 */
function ioWeight(weight: number): number {
  return 1 + Math.trunc(((weight - 10) * 9999) / 990);
}

/** Settings of io.bfq.weight or io.weight, then of io.max. Throws JobError: `invalid`, `unsupported` for a device's weight without BFQ. */
export function ioSettings(blockIO: LinuxBlockIO, host: Host): Setting[] {
  return [
    ...weight(blockIO.weight, host),
    ...(blockIO.weightDevice ?? []).map((device, i) =>
      deviceWeight(`resources.blockIO.weightDevice[${i}]`, device, host),
    ),
    ...THROTTLES.flatMap(([name, key]) =>
      (blockIO[name] ?? []).map((device, i): Setting => {
        const field = `resources.blockIO.${name}[${i}]`;
        const rate = between(`${field}.rate`, device.rate, 0n, UINT64_MAX);
        const value = `${deviceNumber(field, device, host)} ${key}=${rate === 0n ? "max" : rate}`;
        return { file: "io.max", value, controller: "io", field };
      }),
    ),
  ];
}

/** BFQ, when it is loaded, reads only its own file; every other scheduler reads only io.weight. */
function weight(value: number | undefined, host: Host): Setting[] {
  if (value === undefined) return [];
  const field = "resources.blockIO.weight";
  between(field, value, 10, 1000);
  const setting = { controller: "io", field } as const;
  return host.has(BFQ)
    ? [{ ...setting, file: BFQ, value: String(value) }]
    : [{ ...setting, file: "io.weight", value: String(ioWeight(value)) }];
}

function deviceWeight(field: string, device: LinuxWeightDevice, host: Host): Setting {
  if (device.leafWeight !== undefined) throw unsupported(`${field}.leafWeight`, "cgroup v2 has no file for it");
  if (device.weight === undefined) throw invalid(`${field}.weight`, "is missing; give 10 to 1000");
  const value = `${deviceNumber(field, device, host)} ${between(`${field}.weight`, device.weight, 10, 1000)}`;
  if (!host.has(BFQ)) throw unsupported(field, `needs the BFQ scheduler, and this kernel has no ${BFQ}`);
  return { file: BFQ, value, controller: "io", field };
}

function deviceNumber(
  field: string,
  { major, minor, path }: Pick<LinuxThrottleDevice, "major" | "minor" | "path">,
  host: Host,
): string {
  if (path === undefined)
    return `${between(`${field}.major`, major, 0n, MAJOR_MAX)}:${between(`${field}.minor`, minor, 0n, MINOR_MAX)}`;
  if (major !== 0n || minor !== 0n) throw invalid(`${field}.path`, "is given beside a device number; give one of them");
  const disk = host.disk(path);
  if (disk !== undefined) return disk;
  throw invalid(`${field}.path`, `${quoted(path)} is not a block device of this worker, such as /dev/sda`);
}
