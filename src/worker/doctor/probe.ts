import { execFile } from "node:child_process";
import { getSystemErrorName, promisify } from "node:util";
import { type Part, PARTS, withDependants } from "../model/isolation.ts";
import { can } from "../../os/proc.ts";
import { groupNames } from "../system/users.ts";
import { type Cause, CONTAINER, type Finding, found, SECCOMP, textOf } from "./finding.ts";

const run = promisify(execFile);
const TIMEOUT_MS = 10_000;

/** What the supervisor tried (probe.c), and the name of the errno where that failed. */
export type Probed = ReadonlyMap<string, string | undefined>;

/** Runs the supervisor's probe, which may make a file in `directory` and removes it. Throws when the supervisor cannot be run. */
export async function probe(supervisor: string, directory: string | undefined): Promise<Probed> {
  const { stdout } = await run(supervisor, ["probe", ...(directory === undefined ? [] : [directory])], {
    env: {},
    timeout: TIMEOUT_MS,
  });
  const lines = stdout.matchAll(/^(\w+) (?:ok|errno (\d+))$/gm);
  return new Map([...lines].map(([, name, errno]) => [name ?? "", errno && getSystemErrorName(-Number(errno))]));
}

/** Whether this process, and so its supervisors, is root. */
function isRoot(): boolean {
  return process.geteuid?.() === 0;
}

/** Whether a seccomp profile restricts this process, and so its supervisors (proc_pid_status(5)). */
function isFiltered(): boolean {
  return /^Seccomp:\s+2$/m.test(textOf("/proc/self/status"));
}

/** For each namespace: what it gives a job, its name in sysctls, and the kernel option that builds it. */
const NAMESPACES = {
  pid: { gives: "process tree of its own", sysctl: "pid", config: "CONFIG_PID_NS" },
  mount: { gives: "mounts of its own", sysctl: "mnt", config: "CONFIG_NAMESPACES" },
  ipc: { gives: "shared memory and message queues of its own", sysctl: "ipc", config: "CONFIG_IPC_NS" },
  uts: { gives: "host name of its own", sysctl: "uts", config: "CONFIG_UTS_NS" },
  cgroup: { gives: "view of cgroups from its own on", sysctl: "cgroup", config: "CONFIG_CGROUPS" },
  network: { gives: "network of its own, where asked for", sysctl: "net", config: "CONFIG_NET_NS" },
  proc: { gives: "/proc of its own", sysctl: "pid", config: "CONFIG_PID_NS" },
  user: { gives: "isolation without root", sysctl: "user", config: "CONFIG_USER_NS" },
} as const;

export function isolationFindings(probed: Probed, isolationOff: readonly Part[] = []): Finding[] {
  const off = withDependants(isolationOff);
  const findings: Finding[] = [];
  for (const [name, { gives, sysctl, config }] of Object.entries(NAMESPACES)) {
    // Root needs no user namespace.
    if (name === "user" && isRoot()) continue;
    const errno = probed.get(name);
    const cause = errno === undefined ? undefined : namespaceCause(name, errno, sysctl, config);
    const part = PARTS.find((each) => each === (name === "proc" ? "pid" : name));
    findings.push(
      part !== undefined && off.has(part)
        ? found("namespace", name, OFF, [gives, `no ${gives}`], "limited")
        : found("namespace", name, cause, [gives, `no ${gives}`]),
    );
  }
  return findings;
}

const OFF: Cause = { reason: "jobsd --isolation-off has it off", remedy: "leave it out there" };

/** Findings about the privileges that a job's process gives up. */
export function privilegeFindings(isolationOff: readonly Part[] = []): Finding[] {
  return Object.entries({
    "no-new-privileges": [
      "set-user-id programs give a job nothing",
      "set-user-id programs give a job their owner's rights",
    ],
    "no-capabilities": [
      "jobs have no capabilities, root's neither",
      "jobs as root have all of the daemon's capabilities",
    ],
  } as const).map(([name, meanings]) => {
    const off = isolationOff.some((part) => part === name);
    return found("privilege", name, off ? OFF : undefined, meanings, "limited");
  });
}

export function filterFinding(probed: Probed, isolationOff: readonly Part[] = []): Finding {
  const meanings = ["jobs make only system calls that programs need", "jobs may make every system call"] as const;
  if (isolationOff.includes("seccomp")) return found("privilege", "seccomp", OFF, meanings, "limited");
  const errno = probed.get("seccomp");
  const reason = `this kernel has no filters for system calls (${errno})`;
  const cause = errno === undefined ? undefined : { reason, remedy: "a kernel with CONFIG_SECCOMP_FILTER" };
  return found("privilege", "seccomp", cause, meanings);
}

/** Explains the errno of a namespace that cannot be made: clone(2), ERRORS; namespaces(7); user_namespaces(7). */
function namespaceCause(name: string, errno: string, sysctl: string, config: string): Cause {
  const root = isRoot();
  if (errno === "ENOSPC" || errno === "EUSERS")
    return exhausted(root || readSysctl("user.max_user_namespaces") !== "0" ? sysctl : "user");
  if (errno === "EINVAL")
    return { reason: "this kernel does not have them (EINVAL)", remedy: `a kernel with ${config}` };
  if (root && !can("CAP_SYS_ADMIN"))
    return { reason: `the daemon is root without CAP_SYS_ADMIN (${errno})`, remedy: CONTAINER };
  if (name === "proc" && errno === "EPERM")
    return {
      reason: "parts of /proc are masked here, so that the kernel mounts no other (EPERM)",
      remedy: "docker run --security-opt systempaths=unconfined, or --privileged",
    };
  if (name === "proc" && errno === "EACCES")
    return {
      reason: "a profile of AppArmor or SELinux denies mounts (EACCES)",
      remedy: "docker run --security-opt apparmor=unconfined, or --privileged",
    };
  if (!root && readSysctl("kernel.apparmor_restrict_unprivileged_userns") === "1")
    return {
      reason: `AppArmor keeps them from users without root (${errno})`,
      remedy: "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or run jobsd as root",
    };
  if (!root && readSysctl("kernel.unprivileged_userns_clone") === "0")
    return {
      reason: `this kernel keeps them from users without root (${errno})`,
      remedy: "sysctl -w kernel.unprivileged_userns_clone=1, or run jobsd as root",
    };
  return isFiltered()
    ? { reason: `a seccomp profile denies them (${errno})`, remedy: SECCOMP }
    : { reason: `the kernel refuses them (${errno})`, remedy: root ? "see the kernel's log" : "run jobsd as root" };
}

function exhausted(sysctl: string): Cause {
  const key = `user.max_${sysctl}_namespaces`;
  const most = readSysctl(key);
  return {
    reason: most === "0" ? `${key} is 0` : `there are no more to be had (${key} is ${most})`,
    remedy: `sysctl -w ${key}=${Math.max(65_536, 2 * Number(most) || 0)}`,
  };
}

/** The value of a sysctl(8) key; empty when this kernel does not have the key. */
function readSysctl(key: string): string {
  return textOf(`/proc/sys/${key.replaceAll(".", "/")}`);
}

/** Whether clone3 can start a process in a cgroup, without which no job starts in one. */
export function cloneFinding(probed: Probed): Finding {
  const errno = probed.get("clone3");
  const old = { reason: `this kernel cannot clone into a cgroup (${errno})`, remedy: "Linux 5.7" };
  const denied = { reason: `a seccomp profile denies clone3 (${errno})`, remedy: SECCOMP };
  const cause = errno === undefined ? undefined : isFiltered() ? denied : old;
  return found("cgroup", "clone3", cause, ["limits hold from the first instruction", "no job starts in a cgroup"]);
}

/** Whether a program for device rules can be loaded and attached (bpf(2); bpf_prog_load() in kernel/bpf/syscall.c). */
export function deviceFinding(probed: Probed): Finding {
  const errno = probed.get("bpf");
  return found("device rules", "bpf", errno === undefined ? undefined : deviceCause(errno), [
    "devices of --resources",
    "refused: devices of --resources",
  ]);
}

function deviceCause(errno: string): Cause {
  if (errno === "EINVAL" || (errno === "ENOSYS" && !isFiltered()))
    return { reason: `this kernel has no such programs (${errno})`, remedy: "a kernel with CONFIG_CGROUP_BPF" };
  if (!isRoot()) return { reason: `only root may load such programs (${errno})`, remedy: "run jobsd as root" };
  return can("CAP_SYS_ADMIN") || (can("CAP_BPF") && can("CAP_NET_ADMIN"))
    ? { reason: `the kernel or a seccomp profile refuses such programs (${errno})`, remedy: SECCOMP }
    : { reason: `the daemon is root without CAP_BPF and CAP_NET_ADMIN (${errno})`, remedy: CONTAINER };
}

/** Whether jobs can have another user than the daemon. */
export function userFinding(): Finding {
  const area = { area: "privilege", name: "user" } as const;
  if (!isRoot())
    return {
      ...area,
      state: "limited",
      meaning: `jobs run only as the daemon's own user (uid ${process.geteuid?.()}${ownGroups()})`,
      reason: "only root can become another user",
      remedy: "run jobsd as root; newuidmap is not needed",
    };
  const cause =
    can("CAP_SETUID") && can("CAP_SETGID")
      ? undefined
      : { reason: "the daemon is root without CAP_SETUID and CAP_SETGID", remedy: "leave it these capabilities" };
  return found("privilege", "user", cause, ["jobs have other users than the daemon", "no job starts"]);
}

/** Names the groups of the daemon's user, whose rights its jobs have too. */
function ownGroups(): string {
  const groups = (process.getgroups?.() ?? []).filter((gid) => gid !== process.getegid?.());
  return groups.length === 0 ? "" : `, with the groups ${groupNames(groups).join(", ")}`;
}

/** Whether the kernel takes the daemon's advice to the scheduler; jobs run without that, too. */
export function sliceFinding(probed: Probed): Finding {
  const cause =
    probed.get("slice") === undefined
      ? undefined
      : { reason: "this kernel cannot set the slice of one process", remedy: "Linux 6.12" };
  const meanings = [
    "the daemon answers between jobs that keep all CPUs busy",
    "the daemon may wait its turn behind jobs",
  ] as const;
  return found("supervisor", "slice", cause, meanings, "limited");
}
