import { CertError } from "../../certs/error.ts";
import { ClientError } from "../../src/client/errors.ts";
import type { Job } from "../../proto/generated/jobs/v1/worker.ts";
import { UsageError } from "../line/parse.ts";

/**
 * Exit codes, as docker and the shells have them. A job's own code passes through; these stand where there is none.
 */
export const EXIT = {
  ok: 0,
  failed: 1,
  timedOut: 124,
  /** jobsctl or jobsd failed, not the job: also of a command line that is wrong. */
  unavailable: 125,
  notExecutable: 126,
  notFound: 127,
  outOfMemory: 128 + 9,
  closedPipe: 128 + 13,
} as const;

/** How `run` and `wait` exit for a job that has ended. */
export function exitCodeOfJob({ ended }: Job): number {
  if (!ended?.how) return EXIT.unavailable;
  const { how, exitCode, signal } = ended;
  switch (how.$case) {
    case "exited":
      return how.value.code;
    case "signalled":
      return 128 + how.value.signal;
    case "stopped":
      if (signal > 0) return 128 + signal;
      return exitCode >= 0 ? exitCode : EXIT.outOfMemory;
    case "timedOut":
      return EXIT.timedOut;
    case "outOfMemory":
      return signal > 0 ? 128 + signal : EXIT.outOfMemory;
    default:
      return EXIT.unavailable;
  }
}

/** Commands that exit with a job's code, or a host's, have 125 for everything else that goes wrong. */
const PASS_ON: ReadonlySet<string> = new Set(["start", "run", "wait", "doctor"]);

/** How a command exits that threw. */
export function exitCodeOfError(error: unknown, command: string): number {
  if (error instanceof UsageError || (error instanceof CertError && error.code === "invalid")) return EXIT.unavailable;
  if (error instanceof ClosedPipe) return EXIT.closedPipe;
  if (error instanceof ClientError && error.field === "server") return EXIT.unavailable;
  if (!PASS_ON.has(command)) return EXIT.failed;
  if (!(error instanceof ClientError) || error.facts["stage"] !== "exec") return EXIT.unavailable;
  return error.facts["errno"] === "ENOENT" ? EXIT.notFound : EXIT.notExecutable;
}

/** Whoever read stdout has gone, as in `jobsctl stream ID | head`. */
export class ClosedPipe extends Error {
  override readonly name = "ClosedPipe";
}
