import { readFileSync } from "node:fs";

/** The content of a small file, as of /proc or a cgroup, without white space around it; undefined when it cannot be read. */
export function contentOf(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8").trim();
  } catch {
    return undefined;
  }
}

/** Some of capabilities(7), by their numbers in linux/capability.h. */
const CAPABILITIES = {
  CAP_SETGID: 6n,
  CAP_SETUID: 7n,
  CAP_NET_ADMIN: 12n,
  CAP_SYS_ADMIN: 21n,
  CAP_SYS_RESOURCE: 24n,
  CAP_BPF: 39n,
};

/** Whether this process has a capability in effect (proc_pid_status(5)). */
export function can(capability: keyof typeof CAPABILITIES): boolean {
  const [, mask = "0"] = /^CapEff:\s+([0-9a-f]+)$/m.exec(contentOf("/proc/self/status") ?? "") ?? [];
  return ((BigInt(`0x${mask}`) >> CAPABILITIES[capability]) & 1n) === 1n;
}
