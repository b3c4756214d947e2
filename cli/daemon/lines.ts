import { writeSync } from "node:fs";
import { codeOf, reasonOf } from "../../src/os/errno.ts";

/** How long a pipe's reader is waited for, once until it has read again. */
const PATIENCE_MS = 100;
const PAUSE_MS = 10;
const sleeper = new Int32Array(new SharedArrayBuffer(4));

/**
 * Writes lines to a descriptor at once, and never throws: no daemon is to die of its log. What cannot be written keeps
 * its first line, so that none is cut, and loses those after it; `lost` is told how many, and why, before the next one
 * that can be written.
 */
export function linesTo(fd: number, lost: (count: number, reason: string) => void): { write(line: string): void } {
  let begun: Uint8Array = new Uint8Array();
  let count = 0;
  let reason = "";

  /** Whether nothing is left of the line that was begun. */
  function flush(): boolean {
    for (let waitedMs = 0; begun.length > 0;) {
      try {
        begun = begun.subarray(writeSync(fd, begun));
      } catch (error) {
        reason = reasonOf(error);
        if (codeOf(error) !== "EAGAIN" || count > 0 || waitedMs >= PATIENCE_MS) return false;
        Atomics.wait(sleeper, 0, 0, PAUSE_MS);
        waitedMs += PAUSE_MS;
      }
    }
    return true;
  }

  return {
    write(line) {
      if (count > 0 && flush()) {
        const told = count;
        count = 0;
        lost(told, reason);
      }
      if (!flush()) {
        count++;
        return;
      }
      begun = Buffer.from(line);
      flush();
    },
  };
}
