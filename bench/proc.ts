import { readdirSync, readFileSync } from "node:fs";

/* What /proc says of a process. */

/** The value in KiB of a line in a file of /proc, such as "Pss:" in smaps_rollup: proc_pid_smaps(5), proc_pid_status(5). */
function kib(pid: number, file: string, key: string): number {
  return Number(new RegExp(`^${key}:\\s+(\\d+) kB$`, "m").exec(readFileSync(`/proc/${pid}/${file}`, "utf8"))?.[1]);
}

/** Proportional set size in KiB: a shared page counts for each process's share of it. */
export function pssKib(pid: number): number {
  return kib(pid, "smaps_rollup", "Pss");
}

/** Resident set size in KiB: every page that is mapped, also those of the program's file. */
export function rssKib(pid: number): number {
  return kib(pid, "status", "VmRSS");
}

/** The greatest value that rssKib has had, in KiB. */
export function peakRssKib(pid: number): number {
  return kib(pid, "status", "VmHWM");
}

export function parentOf(pid: number): number {
  return Number(/^PPid:\s+(\d+)$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]);
}

/** CPU time of all of a process's threads in ms (schedstat: Documentation/scheduler/sched-stats.rst). */
export function cpuMs(pid: number): number {
  const ns = readdirSync(`/proc/${pid}/task`).map((task) =>
    parseInt(readFileSync(`/proc/${pid}/task/${task}/schedstat`, "utf8"), 10),
  );
  return ns.reduce((sum, each) => sum + each, 0) / 1e6;
}
