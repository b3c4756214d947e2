import { invalid, JobError, quoted } from "../model/errors.ts";
import { EXHAUSTED, FAILING } from "../model/failure.ts";
import type { Launch } from "./frame.ts";

/** Returns the error for a start whose supervisor met `errno` at `stage`. */
export function failureAt(stage: string, errno: string, launch: Launch): JobError {
  const facts = { stage, errno };
  const command = quoted(launch.argv[0] ?? "");
  if (errno === "ETIMEDOUT" || errno === "ECANCELED") return hung(stage, errno, launch);
  if (stage === "exec" && errno === "ENOENT")
    return invalid("command", `${command} was not found, or its interpreter was not${shellHint(launch.argv)}`, facts);
  if (errno === "EAGAIN" && PROCESSES.has(stage)) return tooManyProcesses(stage, launch, facts);
  if (stage === "exec" && errno === "EACCES")
    return invalid("command", `${command} is not executable for ${launch.credentials.user}`, facts);
  if (stage === "exec" && errno === "ENOEXEC")
    return invalid("command", `${command} is no program; a script needs a #! line`, facts);
  if (stage === "exec" && errno === "E2BIG")
    return invalid("args", "arguments and environment are too long for this host", facts);
  if (stage === "exec") return invalid("command", `${command} cannot be executed (${errno})`, facts);
  if (stage === "cwd")
    return invalid(
      "cwd",
      `${quoted(launch.cwd)} is ${errno === "EACCES" ? `not open to ${launch.credentials.user}` : `no directory here (${errno})`}`,
      facts,
    );
  if (stage === "user" && errno === "EBUSY")
    return new JobError(
      "exhausted",
      `processes run under uid ${launch.credentials.uid} that are no job's of this worker; give jobs others (jobsd --job-uids)`,
      { facts },
    );
  const full = EXHAUSTED.has(errno) || ((stage === "directory" || stage === "output") && FAILING.has(errno));
  if (full) return new JobError("exhausted", `no room for another job on this host (${stage}: ${errno})`, { facts });
  if (stage === "isolation")
    return new JobError("unsupported", `the job cannot be kept from the host as it should be (${errno})`, { facts });
  // The kernel told no more; what can be told beforehand is refused by rlimitsOf().
  if (stage === "limits" && errno === "EPERM")
    return invalid("rlimits", "one is above this host's own limit, which this worker may not raise", facts);
  if (stage === "cgroup")
    return new JobError("unsupported", `the job cannot be put in its cgroup (${errno}): ${launch.cgroup}`, { facts });
  if (stage === "devices") return devicesFailure(stage, errno);
  return new JobError("internal", `the job could not be started (${stage}: ${errno})`, { facts });
}

/** Stages at which the kernel counts processes: clone(2), setresuid(2) and the execve(2) after it. */
const PROCESSES = new Set(["clone", "user", "exec"]);

function tooManyProcesses(stage: string, launch: Launch, facts: Readonly<Record<string, string>>): JobError {
  const who = launch.credentials.user;
  const why =
    stage === "clone"
      ? "this host takes no further process: pids.max of a cgroup, kernel.threads-max or kernel.pid_max is reached"
      : `too many processes run as ${who}: its limit of them (RLIMIT_NPROC; --rlimit nproc) is reached`;
  return new JobError("exhausted", `no room for another job: ${why}`, { facts });
}

/** A file system that does not answer, or a lease on the file, kept the start waiting until its end. */
function hung(stage: string, errno: string, { argv, cwd, timeLimitMs }: Launch): JobError {
  const path = stage === "cwd" ? cwd : (argv[0] ?? "");
  const until = errno === "ETIMEDOUT" ? `its time limit of ${timeLimitMs} ms passed` : "it was stopped";
  return new JobError("unavailable", `the start waited for ${quoted(path)} until ${until}`, {
    facts: { stage, errno },
  });
}

/** Returns advice where a whole command line was given as a program's name. */
function shellHint(argv: readonly string[]): string {
  return argv.length === 1 && /\s/.test(argv[0] ?? "")
    ? `; a command line goes to a shell: sh -c ${quoted(argv[0] ?? "")}`
    : "";
}

/** Returns the error for device rules that the kernel did not take. */
export function devicesFailure(stage: string, errno: string): JobError {
  const facts = { stage, errno };
  if (EXHAUSTED.has(errno)) return new JobError("exhausted", `no room for device rules (${errno})`, { facts });
  if (stage !== "devices")
    return new JobError("internal", `device rules: the job's ${stage} fails (${errno})`, { facts });
  const field = "resources.devices";
  const needs = "it takes CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN of the host, and CONFIG_CGROUP_BPF in its kernel";
  return new JobError("unsupported", `${field}: this host does not enforce device rules (${errno}): ${needs}`, {
    field,
    facts,
  });
}

/** Returns the error for a supervisor or a spawner that has ended. */
export function died(message: string): JobError {
  return new JobError("internal", message, { facts: { stage: "supervisor" } });
}
