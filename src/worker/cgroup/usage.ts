import { readFileSync } from "node:fs";
import { join } from "node:path";
import { contentOf } from "../../os/proc.ts";
import type { Pressure, Stall, Usage } from "../model/job.ts";

/** The content of a file of the group, "" when this kernel does not have the file. */
function text(path: string, file: string): string {
  return contentOf(join(path, file)) ?? "";
}

/** Parses lines of `key value`. */
function keyed(content: string): ReadonlyMap<string, number> {
  return new Map([...content.matchAll(/^(\S+) (\d+)$/gm)].map(([, key = "", value]) => [key, Number(value)]));
}

function single(path: string, file: string): number | undefined {
  const value = Number.parseInt(text(path, file), 10);
  return Number.isNaN(value) ? undefined : value;
}

/** Sums a key over the devices of io.stat: lines of `MAJ:MIN rbytes=N wbytes=N rios=N …`. */
function sum(stat: string, key: string): number {
  return [...stat.matchAll(new RegExp(`\\b${key}=(\\d+)`, "g"))].reduce((total, [, value]) => total + Number(value), 0);
}

const STALL = /^(some|full) avg10=(\S+) avg60=(\S+) avg300=(\S+) total=(\d+)$/;

/** Parses lines such as `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`; undefined without PSI. */
function pressure(path: string, file: string): Pressure | undefined {
  const stalls: { some?: Stall; full?: Stall } = {};
  for (const line of text(path, file).split("\n")) {
    const [, name, ...figures] = STALL.exec(line) ?? [];
    const [avg10 = 0, avg60 = 0, avg300 = 0, totalUs = 0] = figures.map(Number);
    if (name === "some" || name === "full") stalls[name] = { avg10, avg60, avg300, totalUs };
  }
  return stalls.some && { some: stalls.some, full: stalls.full };
}

/**
 * What the group's processes have used so far, but for the elapsed time, from the files of cgroup-v2.rst. Figures are
 * absent when their controller or file is. Throws when the group is gone.
 */
export function groupUsage(path: string, controllers: ReadonlySet<string>): Omit<Usage, "elapsedMs"> {
  const cpu = keyed(readFileSync(join(path, "cpu.stat"), "utf8"));
  return {
    cpuUserUs: cpu.get("user_usec") ?? 0,
    cpuSystemUs: cpu.get("system_usec") ?? 0,
    cpuThrottledUs: cpu.get("throttled_usec"),
    cpuPeriods: cpu.get("nr_periods"),
    cpuThrottledPeriods: cpu.get("nr_throttled"),
    ...(controllers.has("memory") && memoryUsage(path)),
    ...(controllers.has("pids") && {
      processes: single(path, "pids.current"),
      processesPeak: single(path, "pids.peak"),
      processesMaxEvents: keyed(text(path, "pids.events")).get("max"),
    }),
    ...(controllers.has("io") && ioUsage(text(path, "io.stat"))),
    // The pressure files need no controller.
    cpuPressure: pressure(path, "cpu.pressure"),
    memoryPressure: pressure(path, "memory.pressure"),
    ioPressure: pressure(path, "io.pressure"),
    fromCgroup: true,
  };
}

function memoryUsage(path: string): Partial<Usage> {
  const events = keyed(text(path, "memory.events"));
  return {
    memoryCurrentBytes: single(path, "memory.current"),
    memoryPeakBytes: single(path, "memory.peak"),
    memorySwapBytes: single(path, "memory.swap.current"),
    memoryLowEvents: events.get("low"),
    memoryHighEvents: events.get("high"),
    memoryMaxEvents: events.get("max"),
    oomEvents: events.get("oom"),
    oomKills: events.get("oom_kill"),
    oomGroupKills: events.get("oom_group_kill"),
  };
}

function ioUsage(stat: string): Partial<Usage> {
  return {
    ioReadBytes: sum(stat, "rbytes"),
    ioWriteBytes: sum(stat, "wbytes"),
    ioReadOperations: sum(stat, "rios"),
    ioWriteOperations: sum(stat, "wios"),
  };
}
