import { constants } from "node:os";
import { join } from "node:path";
import { crc32 } from "node:zlib";
import { codeOf } from "../../os/errno.ts";
import { JobError } from "../model/errors.ts";
import type { Ended, How, Job, Usage } from "../model/job.ts";
import { readText } from "../system/file.ts";

const { SIGKILL } = constants.signals;

/** The record of a job's end, key by key, as the supervisor has written it (src/supervisor/supervise.c). */
export type Exit = ReadonlyMap<string, string>;

/** The last line has the CRC-32 of all the lines before it: a record is what its supervisor wrote, or is damaged. */
const RECORD = /^(version 1\n[^]*\n)crc32 ([0-9a-f]{8})\n$/;

/** EXIT_RECORD_SIZE in supervise.c. */
const MOST_BYTES = 4096;

/**
 * Reads the exit record in a job's directory: lines of `key value`. Returns undefined when there is none, also where there is
 * something else than a file in a directory. Throws when it cannot be read.
 */
export function readExit(directory: string): Exit | "damaged" | undefined {
  try {
    const [, lines = "", sum = ""] = RECORD.exec(readText(join(directory, "exit"), MOST_BYTES) ?? "") ?? [];
    if (lines === "" || crc32(lines) !== Number.parseInt(sum, 16)) return "damaged";
    const pairs = lines.trimEnd().split("\n");
    return new Map(pairs.map((line) => [line.slice(0, line.indexOf(" ")), line.slice(line.indexOf(" ") + 1)]));
  } catch (error) {
    if (error instanceof JobError || ["ENOENT", "ENOTDIR", "ELOOP"].includes(codeOf(error))) return undefined;
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
  {
    job,
    stoppedBy,
    unanswered,
    ownerFull = false,
  }: Readonly<{
    job: Job;
    stoppedBy: string | undefined;
    unanswered?: { readonly killed: number };
    /** The memory of all jobs of the owner together was full. */
    ownerFull?: boolean;
  }>,
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
  else if (signal === SIGKILL && (usage.oomKills ?? 0) > 0) how = outOfMemory(usage, ownerFull);
  return { how, exitCode, signal, killed: Math.max(number("killed"), unanswered?.killed ?? 0) };
}

/**
 * memory.events counts the process that the kernel chose, and where it kills the whole group (memory.oom.group) then all
 * that are in it, that one again: oom_kill_process(), mm/oom_kill.c. "oom" counts only the group whose limit was reached,
 * and those above it (cgroup-v2.rst, memory.events).
 */
function outOfMemory({ oomEvents = 0, oomKills = 0, oomGroupKills = 0 }: Usage, ownerFull: boolean): How {
  const kills = Math.max(1, oomKills - oomGroupKills);
  const ofOwner = ownerFull && oomEvents === 0;
  return { kind: "out-of-memory", kills, wholeJob: oomGroupKills > 0, ...(ofOwner && { ofOwner }) };
}
