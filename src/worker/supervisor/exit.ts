import { constants } from "node:os";
import { join } from "node:path";
import { codeOf } from "../../os/errno.ts";
import { JobError } from "../model/errors.ts";
import type { Ended, How, Job, Usage } from "../model/job.ts";
import { readText } from "../system/file.ts";

const { SIGKILL } = constants.signals;

/** What a supervisor wrote down of its job's end, key by key; src/supervisor/supervise.c writes it. */
export type Exit = ReadonlyMap<string, string>;

/** From its first line to its last. It is written without a sync, so that a power cut can leave zeros, or nothing. */
const WHOLE = /^version 1\n[^\0]*\ndropped \d+\n$/;

/** EXIT_RECORD_SIZE in supervise.c. */
const MOST_BYTES = 4096;
const FLAG = /^[01]$/;
const COUNT = /^\d{1,19}$/;
/** What its lines are to be like; `by` is in no record of before there was that. */
const FORMS: ReadonlyMap<string, RegExp> = new Map([
  ["pid", /^\d{1,9}$/],
  ["cause", /^(none|stop|timeout)$/],
  ["escalated", FLAG],
  ["killed", /^\d{1,9}$/],
  ["code", /^(-1|\d{1,3})$/],
  ["signal", /^\d{1,2}$/],
  ["core", FLAG],
  ["started_ns", COUNT],
  ["ended_ns", COUNT],
  ["elapsed_ns", COUNT],
  ["user_us", COUNT],
  ["system_us", COUNT],
  ["max_rss_bytes", COUNT],
  ["size", COUNT],
  ["first", COUNT],
  ["dropped", COUNT],
]);

/**
 * The exit record in a job's directory: lines of `key value`; undefined when there is no such file, or it is not what a
 * supervisor writes. Throws when it cannot be read.
 */
export function readExit(directory: string): Exit | undefined {
  try {
    const text = readText(join(directory, "exit"), MOST_BYTES) ?? "";
    if (!WHOLE.test(text)) return undefined;
    const lines = text.trim().split("\n");
    const exit = new Map(lines.map((line) => [line.slice(0, line.indexOf(" ")), line.slice(line.indexOf(" ") + 1)]));
    const formed = FORMS.entries().every(([key, form]) => form.test(exit.get(key) ?? ""));
    return formed && isName(exit.get("by") ?? "") ? exit : undefined;
  } catch (error) {
    if (codeOf(error) === "ENOENT" || error instanceof JobError) return undefined;
    throw error;
  }
}

/** Percent-encoded, as control.ts sends it. */
function isName(by: string): boolean {
  try {
    decodeURIComponent(by);
    return true;
  } catch {
    return false;
  }
}

/**
 * How a job ended, from its exit record and its cgroup's last figures; `lost` says why there is no record. What the daemon
 * had to kill itself (overdue.ts) was stopped, although its supervisor does not know by whom.
 */
export function endedOf(
  exit: Exit | undefined,
  usage: Usage,
  {
    job,
    stoppedBy,
    unanswered,
  }: Readonly<{ job: Job; stoppedBy: string | undefined; unanswered?: { readonly killed: number } }>,
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
