import { readdir, readFile, stat, statfs } from "node:fs/promises";
import { join } from "node:path";
import { monitorEventLoopDelay, performance } from "node:perf_hooks";

/** How often the event loop's delay is measured: a delay may be told too short by so much. */
const RESOLUTION_MS = 20;
const NS_IN_MS = 1e6;

/** What the daemon's process and its disk are like. */
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
      const [disk, journal, wal, openFds, limits] = await Promise.all([
        statfs(stateDir),
        sizeOf(join(stateDir, "journal.db")),
        sizeOf(join(stateDir, "journal.db-wal")),
        readdir("/proc/self/fd"),
        readFile("/proc/self/limits", "utf8"),
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
        disk: {
          sizeBytes: disk.blocks * disk.bsize,
          freeBytes: disk.bavail * disk.bsize,
          files: disk.files,
          freeFiles: disk.ffree,
        },
        journalBytes: journal + wal,
        process: processFigures(openFds.length, limits),
      };
    },
    [Symbol.dispose]: () => void delay.disable(),
  };
}

function processFigures(openFds: number, limits: string): HostFigures["process"] {
  const { user, system } = process.cpuUsage();
  const [, most = "unlimited"] = /^Max open files +(\S+)/m.exec(limits) ?? [];
  return {
    cpuSeconds: (user + system) / 1e6,
    residentBytes: process.memoryUsage.rss(),
    startSeconds: performance.timeOrigin / 1000,
    openFds,
    maxFds: most === "unlimited" ? Infinity : Number(most),
  };
}

async function sizeOf(path: string): Promise<number> {
  return stat(path).then(
    ({ size }) => size,
    () => 0,
  );
}
