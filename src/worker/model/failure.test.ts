import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { rlimitsOf } from "../limits/rlimits.ts";
import { failureAt } from "../supervisor/failure.ts";
import type { Launch } from "../supervisor/frame.ts";

/** A start, as far as a failure tells of it. */
function launch(...argv: string[]): Launch {
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- the rest is not looked at
  return { argv, cwd: "/nowhere", cgroup: "/group", credentials: { user: "ada", uid: 1000 } } as unknown as Launch;
}

test.each([
  ["exec", "EAGAIN", "exhausted", "too many processes run as ada: its limit of them (RLIMIT_NPROC"],
  ["user", "EAGAIN", "exhausted", "too many processes run as ada: its limit of them (RLIMIT_NPROC"],
  ["clone", "EAGAIN", "exhausted", "pids.max of a cgroup, kernel.threads-max or kernel.pid_max is reached"],
  ["limits", "EPERM", "invalid", "rlimits: one is above this host's own limit"],
  ["exec", "ENOENT", "invalid", 'command: "true" was not found'],
])("a start that fails at %s with %s is told as %s", (stage, errno, code, message) => {
  expect(failureAt(stage, errno, launch("true"))).toMatchObject({ code, message: expect.stringContaining(message) });
});

test("a command line that is given as a program's name is told of a shell", () => {
  expect(failureAt("exec", "ENOENT", launch("echo hi")).message).toContain('goes to a shell: sh -c "echo hi"');
  expect(failureAt("exec", "ENOENT", launch("echo hi", "you")).message).not.toContain("shell");
});

test("a long name is cut, and not what is wrong with it", () => {
  const { message } = failureAt("exec", "ENOENT", launch("x".repeat(5000)));
  expect(message).toMatch(/^command: "x{100}…" was not found/);
  expect(() => rlimitsOf([{ name: "n".repeat(5000) }])).toThrow(/^rlimits: "n{100}…" is not a limit; give one of cpu/);
});

test("a limit above the host's, or above that of a worker that may not raise it, is refused with what is most", () => {
  const refused = (limit: { soft?: number; hard?: number }): string => {
    try {
      rlimitsOf([{ name: "nofile", ...limit }]);
    } catch (error) {
      return String(error);
    }
    return "";
  };
  const [, most = ""] =
    /: nofile: unlimited is above (\d+), (this host's fs\.nr_open|the limit that)/.exec(refused({})) ?? [];
  const hosts = [readFileSync("/proc/sys/fs/nr_open", "utf8").trim(), hardLimit()];
  expect(hosts).toContain(most);
  expect(refused({ soft: 1, hard: Number(most) })).toBe("");
  for (const limit of [{ hard: Number(most) + 1 }, { soft: Number(most) + 1 }]) expect(refused(limit)).toContain(most);
});

function hardLimit(): string | undefined {
  return /^Max open files +\d+ +(\d+)/m.exec(readFileSync("/proc/self/limits", "utf8"))?.[1];
}
