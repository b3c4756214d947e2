import { archiveTarget, compressTarget, knownTarget, logTarget } from "./logs.ts";
import { jobTarget, journalTarget, rowTarget, exitIn, recordIn } from "./records.ts";
import { replyTarget, spareTarget, strangerTarget } from "./strangers.ts";
import type { Opened } from "./target.ts";

/* The parsers, by what each is given that is damaged. */

export const targets: ReadonlyMap<string, (files: string) => Opened> = new Map([
  ["a byte of an index", knownTarget],
  ["index", (files) => logTarget(files, "", ["index", "output"])],
  ["index.zst", (files) => logTarget(files, ".zst", ["index.zst"])],
  ["output.zst", (files) => logTarget(files, ".zst", ["output.zst"])],
  ["compression", compressTarget],
  ["archive", archiveTarget],
  ["exit", (files) => jobTarget(files, "exit", exitIn)],
  ["job", (files) => jobTarget(files, "job", recordIn)],
  ["journal rows", rowTarget],
  ["journal.db", journalTarget],
  ["spawner's replies", replyTarget],
  ["spares", spareTarget],
  ["what is no file", strangerTarget],
]);
