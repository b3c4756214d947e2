import type { Setting } from "./setting.ts";

/** A write to a file of a group, and the writes that undo it, in order. */
export interface Change extends Setting {
  readonly undo: readonly Pick<Setting, "file" | "value">[];
}

/** Files that have a line for each device or resource, with its key in front; and the values that undo a line that was new. */
const KEYED: Readonly<Record<string, string>> = {
  "io.max": "rbps=max wbps=max riops=max wiops=max",
  "io.latency": "target=0",
  "io.weight": "default",
  "io.bfq.weight": "default",
  "rdma.max": "hca_handle=max hca_object=max",
  "misc.max": "max",
};

export function isKeyed(file: string): boolean {
  return Object.hasOwn(KEYED, file);
}

/** The device or resource that a line of a keyed file limits; a value alone is the default for all of them. */
export function lineKey(file: string, line: string): string {
  return isKeyed(file) && line.includes(" ") ? (line.split(" ")[0] ?? "") : "default";
}

/**
 * The writes that update a group in use. The kernel accepts them in this order, and what undoes them in the reverse
 * order. A file that holds one value is written once, with the last value asked for.
 *
 * @param read returns a file's content before the update; undefined when the file cannot be read
 */
export function changesOf(settings: readonly Setting[], read: (file: string) => string | undefined): Change[] {
  const last = settings.filter(
    ({ file }, i) => isKeyed(file) || !settings.slice(i + 1).some((later) => later.file === file),
  );
  return inOrder(last, read).map((setting) => Object.assign({ undo: undoOf(setting, read) }, setting));
}

/** The kernel refuses a quota below the burst (tg_set_cfs_bandwidth): a lower burst goes before the quota, a higher one after. */
function inOrder(settings: readonly Setting[], read: (file: string) => string | undefined): Setting[] {
  const burst = settings.find(({ file }) => file === "cpu.max.burst");
  if (!burst) return [...settings];
  const lowered = Number(burst.value) < Number(read(burst.file) ?? 0);
  return settings.flatMap((setting) => {
    if (setting.file === "cpu.max") return lowered ? [burst, setting] : [setting, burst];
    return setting === burst && settings.some(({ file }) => file === "cpu.max") ? [] : [setting];
  });
}

function undoOf({ file, value }: Setting, read: (file: string) => string | undefined): Change["undo"] {
  const content = read(file)?.trim();
  // Neither a file that cannot be read, as memory.reclaim, nor a trigger of PSI holds a value to restore.
  if (content === undefined || file.endsWith(".pressure")) return [];
  if (isKeyed(file)) {
    const key = lineKey(file, value);
    const line = content.split("\n").find((each) => lineKey(file, each) === key);
    return [{ file, value: line ?? `${key} ${KEYED[file]}` }];
  }
  // The weight of an idle group reads 0, which cannot be written. Writing cpu.idle brings that weight, and loses the one before.
  if (file === "cpu.weight" && content === "0") return [];
  const weight = read("cpu.weight")?.trim();
  const brought =
    file === "cpu.idle" && content === "0" && weight !== undefined ? [{ file: "cpu.weight", value: weight }] : [];
  // An empty list of CPUs is written as an empty line.
  return [...content.split("\n").map((line) => ({ file, value: line || "\n" })), ...brought];
}
