import type { Setting } from "./setting.ts";

/** A write, and the writes that take it back, in order. */
export interface Change extends Setting {
  readonly undo: readonly Pick<Setting, "file" | "value">[];
}

/** Files of a line a device or resource, each with its own key, and what is written for one that has no line. */
const KEYED: Readonly<Record<string, string>> = {
  "io.max": "rbps=max wbps=max riops=max wiops=max",
  "io.latency": "target=0",
  "io.weight": "default",
  "io.bfq.weight": "default",
  "rdma.max": "hca_handle=max hca_object=max",
  "misc.max": "max",
};

export function keyed(file: string): boolean {
  return Object.hasOwn(KEYED, file);
}

/** Of a line of a keyed file; a lone value is the default's. */
export function keyOf(file: string, line: string): string {
  return keyed(file) && line.includes(" ") ? (line.split(" ")[0] ?? "") : "default";
}

/**
 * The writes of an update to a group that is in use, in an order in which the kernel takes each of them, and, taken back
 * in reverse, each of those. A file of one value is written once, with the last one.
 *
 * @param read a file's content as it is before the update; undefined where it cannot be read
 */
export function changesOf(settings: readonly Setting[], read: (file: string) => string | undefined): Change[] {
  const last = settings.filter(
    ({ file }, i) => keyed(file) || !settings.slice(i + 1).some((later) => later.file === file),
  );
  return inOrder(last, read).map((setting) => Object.assign({ undo: undoOf(setting, read) }, setting));
}

/** The quota is never to be below the burst (tg_set_cfs_bandwidth): what is lowered of the two goes first. */
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
  // What is not to be read has nothing to take back: memory.reclaim, or a trigger of PSI.
  if (content === undefined || file.endsWith(".pressure")) return [];
  if (keyed(file)) {
    const key = keyOf(file, value);
    const line = content.split("\n").find((each) => keyOf(file, each) === key);
    return [{ file, value: line ?? `${key} ${KEYED[file]}` }];
  }
  // An idle group's weight reads 0, which cannot be written: cpu.idle brings it, and takes the weight before it away.
  if (file === "cpu.weight" && content === "0") return [];
  const weight = read("cpu.weight")?.trim();
  const brought =
    file === "cpu.idle" && content === "0" && weight !== undefined ? [{ file: "cpu.weight", value: weight }] : [];
  // An empty list of CPUs is written as a line.
  return [...content.split("\n").map((line) => ({ file, value: line || "\n" })), ...brought];
}
