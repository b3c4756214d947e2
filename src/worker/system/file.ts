import { closeSync, constants, fstatSync, openSync, readSync } from "node:fs";
import { codeOf } from "../../os/errno.ts";
import { JobError } from "../model/errors.ts";

/** A FIFO would hold up all who wait for its writer, a link lead out of the directory. */
export const READ_FLAGS = constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW;

/** Opens a file for reading. Throws JobError `data-loss` for what is there and is no regular file. */
export function openFile(path: string): number {
  const fd = openSync(path, READ_FLAGS);
  if (fstatSync(fd).isFile()) return fd;
  closeSync(fd);
  throw new JobError("data-loss", `${path} is no regular file`);
}

/**
 * Has a file be there, and its owner's alone: SQLite would make it by the umask. One that is there is not opened, since
 * closing it would end this process's locks of it (fcntl(2)).
 */
export function makePrivate(path: string): void {
  try {
    closeSync(openSync(path, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o600));
  } catch (error) {
    if (codeOf(error) !== "EEXIST") throw error;
  }
}

/** A file's text; undefined where it is longer than `mostBytes`, so that it cannot be what was written there. */
export function readText(path: string, mostBytes: number): string | undefined {
  const fd = openFile(path);
  try {
    const { size } = fstatSync(fd);
    if (size > mostBytes) return undefined;
    const bytes = Buffer.alloc(size);
    return bytes.toString("utf8", 0, readSync(fd, bytes, 0, size, 0));
  } finally {
    closeSync(fd);
  }
}
