import { readFileSync, readdirSync, readlinkSync } from "node:fs";

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

/** What `/proc/PID/stat` says, also of one that has ended and is to be reaped. */
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

/** What a process cannot outlive. */
export interface Boot {
  /** Of the kernel. */
  readonly host: string;
  /** Of the init of this pid namespace, which in a container is another each time that one is started. */
  readonly init: string;
}

/** Of CLOCK_MONOTONIC, which is the same in all processes of a boot. */
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

/**
 * Kills what is left of a job that has no cgroup, nor a supervisor any more: the main process, which `born` has to fit, its
 * session, and all that descend from them. A stranger that has the number by now lives. `startedMs`, for one whose supervisor
 * has ended a moment ago: when its exec was told, as nowMs() has it.
 */
export function killTree(pid: number, born: string | undefined, boot: Boot, startedMs: number | undefined): void {
  const killed = new Set<string>();
  for (let before = -1; before < killed.size;) {
    before = killed.size;
    for (const each of treeOf(pid, born, boot, startedMs)) {
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
}

/** It had its number before its exec was told, at `startedMs`: whoever has it after is younger. */
function isOf({ ticks }: Process, startedMs: number): boolean {
  const uptimeMs = Number(readFileSync("/proc/uptime", "latin1").split(" ")[0]) * 1000;
  const ageMs = uptimeMs - Number(ticks) * TICK_MS;
  return nowMs() - ageMs <= startedMs + 2 * TICK_MS;
}

function treeOf(pid: number, born: string | undefined, boot: Boot, startedMs: number | undefined): Process[] {
  const main = pid > 0 ? look(pid) : undefined;
  const fresh = startedMs !== undefined;
  const itself = main && (born === undefined ? fresh && isOf(main, startedMs) : born === birth(main, boot));
  // Without it, its session is no other's: nobody can have had the number, and left it, in that moment.
  if (pid <= 0 || !(itself ?? fresh)) return [];
  const all = readdirSync("/proc").flatMap((name) => (/^\d+$/.test(name) ? (look(Number(name)) ?? []) : []));
  const tree = new Map<number, Process>();
  for (let before = -1; before < tree.size;) {
    before = tree.size;
    for (const each of all) if (each.session === pid || tree.has(each.parent)) tree.set(each.pid, each);
  }
  return [...tree.values()];
}
