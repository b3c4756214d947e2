import { closeSync, constants, fstatSync, lstatSync, openSync, writeSync } from "node:fs";
import { join } from "node:path";
import { codeOf } from "../../os/errno.ts";

/* src/supervisor/supervisor.h has what is written: struct order. */
const ORDER_BYTES = 16;
const ORDER_BY = -1;
const BY_BYTES = 8;
/** An order is written whole or not at all; PIPE_BUF, pipe(7). */
const MOST_BY_BYTES = 1000;

/** From the signal to SIGKILL, where nobody says: at a job's time limit, and for a stop that names no grace. */
export const GRACE_MS = 10_000;

/**
 * Tells the supervisor of the job in `directory` to end it. `by` is who asks for that, which the exit record tells. Returns
 * undefined once the order is in the FIFO, else why it is not: an errno's name, ENXIO where nobody reads. Never throws.
 */
export function order(directory: string, signal: number, graceMs: number, by = ""): string | undefined {
  const end = Buffer.alloc(ORDER_BYTES);
  end.writeInt32LE(signal, 0);
  end.writeBigInt64LE(BigInt(Math.ceil(graceMs)), 8);
  const bytes = Buffer.concat([end, ...namesOf(by)]);
  try {
    return withControl(directory, (fd) => (writeSync(fd, bytes) === bytes.length ? undefined : "EAGAIN"));
  } catch (error) {
    return codeOf(error);
  }
}

/** Calls `use` with a descriptor of the FIFO, as long as somebody reads that. Throws where none does, or it is none. */
function withControl<T>(directory: string, use: (fd: number) => T): T {
  // A link in a job's place leads to files that the job's supervisor has not made.
  if (!lstatSync(directory).isDirectory()) throw Object.assign(new Error("no directory"), { code: "ENOTDIR" });
  const fd = openSync(join(directory, "control"), constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW);
  try {
    if (!fstatSync(fd).isFIFO()) throw Object.assign(new Error("control is no FIFO"), { code: "ENXIO" });
    return use(fd);
  } finally {
    closeSync(fd);
  }
}

function namesOf(by: string): Buffer[] {
  const name = encodeURIComponent(by.toWellFormed());
  const pieces = name.length > MOST_BY_BYTES ? [] : (name.match(/.{1,8}/g) ?? []);
  return pieces.map((piece) => {
    const bytes = Buffer.alloc(ORDER_BYTES);
    bytes.writeInt32LE(ORDER_BY, 0);
    bytes.write(piece.padEnd(BY_BYTES), 8, "latin1");
    return bytes;
  });
}

/** The supervisor of the job in `directory` lives, for somebody reads its FIFO: opening one for writing alone fails otherwise (fifo(7)). */
export function isSupervised(directory: string): boolean {
  try {
    return withControl(directory, () => true);
  } catch {
    return false;
  }
}
