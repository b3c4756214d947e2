import { readFileSync, readdirSync } from "node:fs";
import { setTimeout } from "node:timers/promises";

const DEADLINE_MS = 30_000;

/** Waits until a condition holds, half a minute at most: a machine may have much else to do. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  const deadline = performance.now() + DEADLINE_MS;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`waited in vain until ${what}`);
    await setTimeout(2);
  }
}

/** Resolves as `promise` does, or throws where that takes too long. */
export async function soon<T>(promise: Promise<T>, what: string): Promise<T> {
  const abort = new AbortController();
  const late = setTimeout(DEADLINE_MS, undefined, { signal: abort.signal }).then(() => {
    throw new Error(`waited in vain until ${what}`);
  });
  late.catch(() => {}); // it is aborted
  try {
    return await Promise.race([promise, late]);
  } finally {
    abort.abort();
  }
}

/** Everything in /proc/PID/stat after the command's name: state, ppid, pgrp, session …; undefined where there is none. */
export function statOf(pid: number): string[] | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  } catch {
    return undefined;
  }
}

export function processes(): number[] {
  return readdirSync("/proc").map(Number).filter(Boolean);
}

export function childrenOf(pid: number): number[] {
  return processes().filter((child) => statOf(child)?.[1] === String(pid));
}

/** Whether the process runs; a zombie does not, but for one that has other threads than its first. */
export function runs(pid: number): boolean {
  const stat = statOf(pid);
  return stat !== undefined && (!/[ZX]/.test(stat[0] ?? "") || Number(stat[17]) > 1);
}

/** Processes with `text` in their environment. */
export function marked(text: string): number[] {
  return processes().filter((pid) => {
    try {
      return readFileSync(`/proc/${pid}/environ`, "latin1").includes(text);
    } catch {
      return false;
    }
  });
}
