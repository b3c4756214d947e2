import { readFileSync } from "node:fs";
import { constants } from "node:os";
import { join } from "node:path";
import { codeOf } from "./errors.ts";
import type { Ended, How, Usage } from "./job.ts";
import type { Running } from "./running.ts";

const { SIGKILL } = constants.signals;

/** What a supervisor wrote down of its job's end, key by key; src/supervisor/supervise.c writes it. */
export type Exit = ReadonlyMap<string, string>;

/** From its first line to its last. It is written without a sync, so that a power cut can leave zeros, or nothing. */
const WHOLE = /^version 1\n[^\0]*\ndropped \d+\n$/;

/**
 * The exit record in a job's directory: lines of `key value`; undefined when there is no such file, or it is not whole.
 * Throws when it cannot be read.
 */
export function readExit(directory: string): Exit | undefined {
  try {
    const text = readFileSync(join(directory, "exit"), "utf8");
    if (!WHOLE.test(text)) return undefined;
    const lines = text.trim().split("\n");
    return new Map(lines.map((line) => [line.slice(0, line.indexOf(" ")), line.slice(line.indexOf(" ") + 1)]));
  } catch (error) {
    if (codeOf(error) === "ENOENT") return undefined;
    throw error;
  }
}

/**
 * How a job ended, from its exit record and its cgroup's last figures; `lost` says why there is no record. What the daemon
 * had to kill itself (overdue.ts) was stopped, although its supervisor does not know by whom.
 */
export function endedOf(
  exit: Exit | undefined,
  usage: Usage,
  { job, stoppedBy, unanswered }: Pick<Running, "job" | "stoppedBy" | "unanswered">,
  lost = "its supervisor ended without a record",
): Ended {
  if (!exit)
    return {
      how: { kind: "lost", reason: lost },
      exitCode: -1,
      signal: 0,
      killed: unanswered?.killed ?? 0,
    };
  const number = (key: string): number => Number(exit.get(key));
  const exitCode = number("code");
  const signal = number("signal");
  let how: How =
    signal === 0 ? { kind: "exited", code: exitCode } : { kind: "signalled", signal, coreDumped: number("core") === 1 };
  if (exit.get("cause") === "stop" || (unanswered && exit.get("cause") === "none"))
    how = {
      kind: "stopped",
      by: stoppedBy ?? decodeURIComponent(exit.get("by") ?? ""),
      escalated: number("escalated") === 1 || (unanswered?.killed ?? 0) > 0,
    };
  else if (exit.get("cause") === "timeout") how = { kind: "timed-out", limitMs: job.timeLimitMs ?? 0 };
  else if (signal === SIGKILL && (usage.oomKills ?? 0) > 0) how = outOfMemory(usage);
  return { how, exitCode, signal, killed: Math.max(number("killed"), unanswered?.killed ?? 0) };
}

/**
 * memory.events counts the process that the kernel chose, and where it kills the whole group (memory.oom.group) then all
 * that are in it, that one again: oom_kill_process(), mm/oom_kill.c.
 */
function outOfMemory({ oomKills = 0, oomGroupKills = 0 }: Usage): How {
  return { kind: "out-of-memory", kills: Math.max(1, oomKills - oomGroupKills), wholeJob: oomGroupKills > 0 };
}
