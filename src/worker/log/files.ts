import { existsSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import type { JobLog } from "../model/job.ts";

/** A log as it is written, and compressed; the index first: what is left without it is no empty log. */
export const PLAIN_FILES = ["index", "output"] as const;
export const COMPRESSED_FILES = ["index.zst", "output.zst"] as const;
/** The files of a log that is being compressed. */
export const NEW_FILES = ["index.zst.new", "output.zst.new"] as const;
export const LOG_FILES = [...PLAIN_FILES, ...COMPRESSED_FILES, ...NEW_FILES] as const;

/** Removes the files of a log: its index first. Throws what keeps one from being removed. */
export function removeLogFiles(directory: string): void {
  for (const file of LOG_FILES) rmSync(join(directory, file), { force: true });
}

/** Returns how many bytes of the disk the log in a job's directory takes. A file that cannot be looked at takes none. */
export function bytesOnDisk(directory: string): number {
  const blocks = LOG_FILES.map((file) => {
    try {
      return statSync(join(directory, file), { throwIfNoEntry: false })?.blocks ?? 0;
    } catch {
      return 0; // something else stands where the directory or the file was
    }
  });
  return blocks.reduce((sum, count) => sum + count * 512, 0); // st_blocks, stat(2)
}

/**
 * Returns which files of a log are in a job's directory: `compressed` and `plain` logs are whole. Throws when the directory
 * cannot be looked at.
 */
export function logFilesIn(directory: string): "compressed" | "plain" | "part" | "none" {
  const there = (file: string): boolean => statSync(join(directory, file), { throwIfNoEntry: false }) !== undefined;
  const [plain, compressed] = [PLAIN_FILES.map(there), COMPRESSED_FILES.map(there)];
  if (compressed.every(Boolean)) return "compressed";
  if (plain.every(Boolean)) return "plain";
  return [...plain, ...compressed].some(Boolean) ? "part" : "none";
}

/** Returns where the log of an ended job is, as its directory shows it. `due` says that something is yet to be done with it. */
export function logIn(directory: string, due: boolean): JobLog {
  const compressed = existsSync(join(directory, "output.zst")) && !existsSync(join(directory, "output"));
  const kind = compressed ? "compressed" : "kept";
  return { kind, bytes: bytesOnDisk(directory), ...(due && { due }) };
}
