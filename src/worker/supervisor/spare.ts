import { closeSync, constants, openSync, renameSync, writeSync } from "node:fs";
import { Socket } from "node:net";
import { join } from "node:path";
import { codeOf } from "../../os/errno.ts";
import { withReserve } from "../system/reserve.ts";
import { failureAt } from "./failure.ts";
import { HEADER_BYTES, type Launch, startFrame } from "./frame.ts";

/* How a supervisor that waits gets its job; docs/decisions/0005-supervisors-wait-for-their-jobs.md says why so. */

/** How the directory of a supervisor that has no job yet begins; its pid follows. */
export const SPARE = ".spare-";

/** Written to a FIFO whole or not at all; PIPE_BUF, pipe(7). */
const ATOMIC_BYTES = 4096;
/** Written behind a start: the job may run, or is given up. */
const GO = Buffer.of(1);
const ABORT = Buffer.of(0);

/** A supervisor that waits for its job. */
export interface Spare {
  readonly pid: number;
  readonly directory: string;
  /** Its FIFO, open for writing. */
  readonly control: number;
}

/**
 * Has a spare prepare for a job, has that recorded meanwhile, and lets it go on. False when the spare had died, and
 * nothing was recorded. Throws what `record` throws, and JobError when the directory cannot be had.
 */
export async function give(
  { control, directory, pid }: Spare,
  number: number,
  { launch, record }: { readonly launch: Launch; readonly record: (supervisor: number) => void },
): Promise<boolean> {
  const bytes = startFrame(number, launch);
  // A start that is longer than a FIFO holds is written while the supervisor reads it.
  const long = bytes.length > ATOMIC_BYTES ? new Socket({ fd: control, readable: false }) : undefined;
  let last = ABORT;
  try {
    if (long) await written(long, bytes);
    else writeSync(control, bytes);
    record(pid);
    take(directory, launch);
    last = GO;
    return true;
  } catch (error) {
    if (codeOf(error) === "EPIPE") return false;
    throw error;
  } finally {
    if (long) long.end(last);
    else end(control, last);
  }
}

/** Ends a spare that is of no use: it is sent what is no frame, and puts its files away. */
export function dismiss(directory: string): void {
  try {
    const flags = constants.O_WRONLY | constants.O_NONBLOCK;
    withReserve(() => end(openSync(join(directory, "control"), flags), Buffer.alloc(HEADER_BYTES)));
  } catch {
    // The spare has died, or ends with the spawner.
  }
}

function written(socket: Socket, bytes: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    socket.on("error", reject);
    socket.write(bytes, (error) => (error ? reject(error) : resolve()));
  });
}

function take(directory: string, launch: Launch): void {
  try {
    renameSync(directory, launch.directory);
  } catch (error) {
    throw failureAt("directory", codeOf(error), launch);
  }
}

/** Whoever watches the FIFO must find no writer in it but its supervisor, so it is closed. */
function end(control: number, last: Buffer): void {
  try {
    writeSync(control, last);
  } catch {
    // The supervisor has failed already, and said so, or has died.
  } finally {
    closeSync(control);
  }
}
