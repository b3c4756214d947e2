import { constants } from "node:os";

/* What the launchers in bin/ know of the caller, and Node hides: it is in variables of their own. */

const { JOBS_NODE_OPTIONS, JOBS_IGNORED_SIGNALS = "0" } = process.env;
delete process.env["JOBS_NODE_OPTIONS"];
delete process.env["JOBS_IGNORED_SIGNALS"];
// Restored, because a job may be given the caller's environment.
if (JOBS_NODE_OPTIONS !== undefined) process.env["NODE_OPTIONS"] = JOBS_NODE_OPTIONS;

const mask = BigInt(/^[0-9a-f]{1,16}$/.test(JOBS_IGNORED_SIGNALS) ? `0x${JOBS_IGNORED_SIGNALS}` : 0);

/** Whether the caller had this signal ignored, as nohup does, and a shell for what it runs in the background. */
export function isIgnored(signal: NodeJS.Signals): boolean {
  // Windows has no number for some of them; neither it nor npm's launcher tells which ones are ignored.
  return ((mask >> BigInt((constants.signals[signal] ?? 1) - 1)) & 1n) === 1n;
}

/** Has every signal ignored that the caller had ignored: Node gives all of them back their default. */
export function keepIgnored(): void {
  for (const signal of ["SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR2", "SIGALRM"] as const)
    if (isIgnored(signal)) process.on(signal, () => {});
}
