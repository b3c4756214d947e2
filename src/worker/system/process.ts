import { readdirSync, readFileSync, readlinkSync } from "node:fs";

/* What tells a process from those that had its number before, or will have it: proc_pid_stat(5). */

/** USER_HZ; the uptime has no more digits either. */
const TICK_MS = 10;

interface Process {
  readonly pid: number;
  readonly parent: number;
  readonly session: number;
  /** When it was started, in ticks since boot. */
  readonly ticks: string;
}

/** A process as `/proc/PID/stat` tells it, also one that has ended and is to be reaped. */
function stat(pid: number): (Process & { readonly threads: number; readonly state: string }) | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "latin1");
    // The command's name is in parentheses and may hold anything; what follows are a letter and numbers.
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    const [state = "X", parent, , session] = fields;
    const numbers = { parent: Number(parent), session: Number(session), threads: Number(fields[17]) };
    return { pid, state, ticks: fields[19] ?? "", ...numbers };
  } catch {
    return undefined;
  }
}

/** Undefined where nothing of the process runs. Its state is that of its first thread, which others may outlive. */
function look(pid: number): Process | undefined {
  const found = stat(pid);
  return found && (!/[ZX]/.test(found.state) || found.threads > 1) ? found : undefined;
}

/** The process runs, and its first thread, whose number it has, has ended. */
export function isLeaderless(pid: number): boolean {
  const found = stat(pid);
  return found !== undefined && /[ZX]/.test(found.state) && found.threads > 1;
}

/** The boots of a host and of a container, which no process outlives. */
export interface Boot {
  /** The kernel's. */
  readonly host: string;
  /** That of this pid namespace's init, which is another one each time that a container is started. */
  readonly init: string;
}

/** Returns CLOCK_MONOTONIC, in ms, which is the same in all processes of a boot. */
export function nowMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

export function thisBoot(): Boot {
  let namespace = "";
  try {
    namespace = readlinkSync("/proc/self/ns/pid").replaceAll(/\D/g, "");
  } catch {
    // Not to be seen: the host's boot alone must do.
  }
  return {
    host: readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim(),
    init: `${namespace}.${look(1)?.ticks ?? ""}`,
  };
}

/** Why what ran at `then` cannot run now; undefined when it can. */
export function interruption(then: Boot, now: Boot): string | undefined {
  if (then.host !== now.host) return "the host was rebooted";
  return then.init === now.init ? undefined : "the container was restarted";
}

/** With its pid, names a process for good; undefined when it is not a child of `parent` that runs. */
export function birthOf(pid: number, parent: number, boot: Boot): string | undefined {
  const found = pid > 0 && parent > 0 ? look(pid) : undefined;
  return found?.parent === parent ? birth(found, boot) : undefined;
}

function birth({ ticks }: Process, { host, init }: Boot): string {
  return `${host} ${init} ${ticks}`;
}

export function bootOf(born: string): Boot {
  const [host = "", init = ""] = born.split(" ");
  return { host, init };
}

/** The processes from which all others of a job descend, as far as they are known. */
export interface Roots {
  /** The main process's pid; 0 where nobody knows it. */
  readonly pid: number;
  /** The main process's birth; see birthOf(). */
  readonly born: string | undefined;
  /** While its supervisor lives, and for a moment after: when its exec was told, as nowMs() has it. */
  readonly startedMs: number | undefined;
  /** The supervisor's pid, where the supervisor may live. */
  readonly supervisor?: number;
}

/**
 * Kills what is left of a job that has no cgroup: the main process, its session, the children of its supervisor, and all
 * that descend from them. A stranger that has a number of theirs by now lives. Returns how many there were.
 */
export function killTree(roots: Roots, boot: Boot): number {
  const killed = new Set<string>();
  let most = 0; // a supervisor that is well kills some of them itself
  for (let before = -1; before < killed.size;) {
    before = killed.size;
    const tree = treeOf(roots, boot);
    most = Math.max(most, tree.length);
    for (const each of tree) {
      // Looked at again, because reading all of /proc takes a while.
      if (look(each.pid)?.ticks !== each.ticks) continue;
      try {
        process.kill(each.pid, "SIGKILL");
        killed.add(`${each.pid} ${each.ticks}`);
      } catch {
        // It has ended.
      }
    }
  }
  return Math.max(most, killed.size);
}

/** Returns whether a process is as old as an exec that was told at `startedMs`: one that has its pid later is younger. */
function isOf({ ticks }: Process, startedMs: number): boolean {
  const uptimeMs = Number(readFileSync("/proc/uptime", "latin1").split(" ")[0]) * 1000;
  const ageMs = uptimeMs - Number(ticks) * TICK_MS;
  return nowMs() - ageMs <= startedMs + 2 * TICK_MS;
}

/** Whether the main process is the job's; undefined where there is none. */
function isMain({ pid, born, startedMs }: Roots, boot: Boot): boolean | undefined {
  const main = pid > 0 ? look(pid) : undefined;
  if (!main) return undefined;
  return born === undefined ? startedMs !== undefined && isOf(main, startedMs) : born === birth(main, boot);
}

function treeOf(roots: Roots, boot: Boot): Process[] {
  const { pid, startedMs, supervisor } = roots;
  // Without the main process, its session is no other's: nobody can have had the number, and left it, in that moment.
  const session = pid > 0 && (isMain(roots, boot) ?? startedMs !== undefined) ? pid : undefined;
  const parent = supervisorState(supervisor, startedMs) === undefined ? undefined : supervisor;
  if (session === undefined && parent === undefined) return [];
  const all = readdirSync("/proc").flatMap((name) => (/^\d+$/.test(name) ? (look(Number(name)) ?? []) : []));
  const tree = new Map<number, Process>();
  for (let before = -1; before < tree.size;) {
    before = tree.size;
    for (const each of all)
      if (each.session === session || each.parent === parent || tree.has(each.parent)) tree.set(each.pid, each);
  }
  return [...tree.values()];
}

/** Sends a signal to the main process of a job whose supervisor cannot; it goes on if it was stopped. */
export function signalMain(roots: Roots, boot: Boot, signal: number): void {
  try {
    if (isMain(roots, boot) !== true) return;
    process.kill(roots.pid, signal);
    process.kill(roots.pid, "SIGCONT");
  } catch {
    // It has ended.
  }
}

/**
 * A letter of proc_pid_stat(5): what the supervisor `pid` does of a job whose exec was told at `startedMs`. Undefined when it
 * is gone, or nobody knows which process it was.
 */
export function supervisorState(pid: number | undefined, startedMs: number | undefined): string | undefined {
  if (pid === undefined || pid <= 0 || startedMs === undefined) return undefined;
  const found = stat(pid);
  return found && !/[ZX]/.test(found.state) && isOf(found, startedMs) ? found.state : undefined;
}

/** Sends a signal to that supervisor, if it is there. */
export function signalSupervisor(
  pid: number | undefined,
  startedMs: number | undefined,
  signal: "SIGCONT" | "SIGKILL",
): void {
  try {
    if (supervisorState(pid, startedMs) !== undefined) process.kill(pid ?? 0, signal);
  } catch {
    // It has ended.
  }
}
