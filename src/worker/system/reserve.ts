import { closeSync, openSync } from "node:fs";

/** What any of those needs that may not fail: a file, and a directory that it is looked for in. */
const RESERVE = 2;

const held: number[] = [];
let running = 0;

/** Sets descriptors aside for what must not fail when this process has no more; as far as there are any. */
export function fillReserve(): void {
  try {
    while (held.length < RESERVE) held.push(openSync("/dev/null", "r"));
  } catch {
    // What runs now has taken the last ones. It is tried again after the next one that needed them.
  }
}

/** Runs what must not fail for want of a descriptor, and opens none to keep. May be called by what it runs. */
export function withReserve<T>(run: () => T): T {
  for (const fd of held.splice(0)) closeSync(fd);
  running++;
  try {
    return run();
  } finally {
    if (--running === 0) fillReserve();
  }
}
