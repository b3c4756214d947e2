import { closeSync, constants, openSync, writeSync } from "node:fs";
import { join } from "node:path";
import { JobError, codeOf } from "./errors.ts";

const ORDER_BYTES = 16;

/** From the signal to SIGKILL, where nobody says: at a job's time limit, and for a stop that names no grace. */
export const GRACE_MS = 10_000;

/**
 * Tells the supervisor of the job in `directory` to end it. That it is gone already is no error: its end is on its way.
 * Throws JobError `exhausted` when it cannot be told.
 */
export function order(directory: string, signal: number, graceMs: number): void {
  const bytes = Buffer.alloc(ORDER_BYTES);
  bytes.writeInt32LE(signal, 0);
  bytes.writeBigInt64LE(BigInt(Math.ceil(graceMs)), 8);
  try {
    const fd = openSync(join(directory, "control"), constants.O_WRONLY | constants.O_NONBLOCK);
    try {
      writeSync(fd, bytes);
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    const code = codeOf(error);
    if (code !== "ENXIO" && code !== "EPIPE" && code !== "ENOENT")
      throw new JobError("exhausted", `the job's supervisor cannot be reached (${code})`, { cause: error });
  }
}

/** The supervisor of the job in `directory` lives, for somebody reads its FIFO: opening one for writing alone fails otherwise (fifo(7)). */
export function isSupervised(directory: string): boolean {
  try {
    closeSync(openSync(join(directory, "control"), constants.O_WRONLY | constants.O_NONBLOCK));
    return true;
  } catch {
    return false;
  }
}
