import { readdir, readFile, stat, statfs } from "node:fs/promises";
import { join } from "node:path";
import { codeOf } from "../os/errno.ts";
import { monitorEventLoopDelay, performance } from "node:perf_hooks";

/** How often the event loop's delay is measured: a delay may be told too short by so much. */
const RESOLUTION_MS = 20;
const NS_IN_MS = 1e6;

/** What the daemon's process and its disk are like. A figure that cannot be had is NaN. */
export interface HostFigures {
  /** How late the event loop was since these figures were last asked for, by quantile; "1" is the maximum. */
  readonly delayNs: Readonly<Record<"0.5" | "0.99" | "1", number>>;
  /** Time since the process began in which the event loop did not wait. */
  readonly busyMs: number;
  /** The disk of the state directory. */
  readonly disk: {
    readonly sizeBytes: number;
    readonly freeBytes: number;
    readonly files: number;
    readonly freeFiles: number;
  };
  /** The size of the journal, with what was written since it was last put in order. */
  readonly journalBytes: number;
  readonly process: {
    readonly cpuSeconds: number;
    readonly residentBytes: number;
    readonly startSeconds: number;
    readonly openFds: number;
    readonly maxFds: number;
  };
}

/** Measures the event loop's delay from now on, which takes a timer: nothing else could tell that a loop is late. */
export function watchHost(): Disposable & { figures(stateDir: string): Promise<HostFigures> } {
  const delay = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  delay.enable();
  /** A timer that is on time was RESOLUTION_MS after the one before. */
  const lateNs = (ns: number): number => Math.max(0, ns - RESOLUTION_MS * NS_IN_MS);
  return {
    async figures(stateDir) {
      // A disk that fails, and a process without descriptors, are what somebody wants to see metrics of.
      const [disk, journal, wal, openFds, maxFds] = await Promise.all([
        diskOf(stateDir).catch(() => NO_DISK),
        sizeOf(join(stateDir, "journal.db")),
        sizeOf(join(stateDir, "journal.db-wal")),
        readdir("/proc/self/fd").then(({ length }) => length, notKnown),
        maxFdsOf().catch(notKnown),
      ]);
      const delayNs = {
        "0.5": lateNs(delay.percentile(50)),
        "0.99": lateNs(delay.percentile(99)),
        "1": lateNs(delay.max),
      };
      delay.reset();
      return {
        delayNs,
        busyMs: performance.eventLoopUtilization().active,
        disk,
        journalBytes: journal + wal,
        process: { ...processFigures(), openFds, maxFds },
      };
    },
    [Symbol.dispose]: () => void delay.disable(),
  };
}

const NO_DISK = { sizeBytes: Number.NaN, freeBytes: Number.NaN, files: Number.NaN, freeFiles: Number.NaN };

function notKnown(): number {
  return Number.NaN;
}

async function diskOf(path: string): Promise<HostFigures["disk"]> {
  const { blocks, bavail, bsize, files, ffree } = await statfs(path);
  return { sizeBytes: blocks * bsize, freeBytes: bavail * bsize, files, freeFiles: ffree };
}

async function maxFdsOf(): Promise<number> {
  const limits = await readFile("/proc/self/limits", "utf8");
  const [, most = "unlimited"] = /^Max open files +(\S+)/m.exec(limits) ?? [];
  return most === "unlimited" ? Infinity : Number(most);
}

function processFigures(): Omit<HostFigures["process"], "openFds" | "maxFds"> {
  const { user, system } = process.cpuUsage();
  return {
    cpuSeconds: (user + system) / 1e6,
    residentBytes: process.memoryUsage.rss(),
    startSeconds: performance.timeOrigin / 1000,
  };
}

/** Returns a file's size in bytes, 0 where it is not there. */
async function sizeOf(path: string): Promise<number> {
  return stat(path).then(
    ({ size }) => size,
    (error: unknown) => (codeOf(error) === "ENOENT" ? 0 : Number.NaN),
  );
}
