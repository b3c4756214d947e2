import { invalid, quoted } from "../model/errors.ts";
import type { LinuxResources } from "../model/resources.ts";
import { between, CONTROLLERS, type Setting } from "./setting.ts";

const RDMA_MAX = 2 ** 31 - 1; // an int; S32_MAX means no limit: kernel/cgroup/rdma.c
/** Never a cgroup.* file, which would move, kill or freeze the job, and never a path to another group. */
const KEY = /^([a-z]+)(\.\w+)+$/;

/** Settings of rdma.max, one for each device. Throws JobError `invalid`. */
export function rdmaSettings(rdma: NonNullable<LinuxResources["rdma"]>): Setting[] {
  return Object.entries(rdma).map(([device, { hcaHandles, hcaObjects }]) => {
    const field = `resources.rdma[${quoted(device)}]`;
    if (!/^[\w.:-]+$/.test(device)) throw invalid(field, "is not the name of a device, such as mlx5_1");
    const part = (name: string, key: string, value: number | undefined): string =>
      value === undefined ? "" : ` ${key}=${between(`${field}.${name}`, value, 0, RDMA_MAX)}`;
    const parts = part("hcaHandles", "hca_handle", hcaHandles) + part("hcaObjects", "hca_object", hcaObjects);
    if (parts === "") throw invalid(field, "limits nothing; give hcaHandles or hcaObjects");
    return { file: "rdma.max", value: device + parts, controller: "rdma", field };
  });
}

/**
 * Settings of the files that a request names itself, one for each line: of a nested-keyed file, the kernel reads one key
 * from each write. Throws JobError `invalid`.
 */
export function unifiedSettings(unified: NonNullable<LinuxResources["unified"]>): Setting[] {
  return Object.entries(unified).flatMap(([file, text]) => {
    const field = `resources.unified[${quoted(file)}]`;
    const controller = CONTROLLERS.find((name) => name === KEY.exec(file)?.[1]);
    if (!controller)
      throw invalid(
        field,
        `is not a file of a controller, such as memory.high; these have files: ${CONTROLLERS.join(", ")}`,
      );
    const lines = text.split("\n").filter((line) => line !== "");
    if (lines.length === 0) throw invalid(field, "is empty; leave it out to write nothing");
    return lines.map((value): Setting => ({ file, value, controller, field }));
  });
}
