import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { soon, until } from "./processes.ts";
import { isRoot } from "./root.ts";

/** Why strace cannot be had here; undefined where it can. */
export const noStrace = spawnSync("strace", ["-V"]).status === 0 ? undefined : "strace is not installed";
/** Why system calls of supervisors cannot be made to fail: these cannot be dumped, and so root alone can trace them. */
export const noInjection = noStrace ?? (isRoot ? undefined : "it takes root");

export interface Fault extends AsyncDisposable {
  /** Resolves when so many calls have ended so. */
  met(times?: number): Promise<void>;
}

/**
 * Makes these system calls of a process, and of its threads, end with an errno, until the result is disposed of.
 * `calls` is written as strace has it: "pwrite64,renameat". With a path, only calls that concern that file fail.
 */
export function failing(pid: number, calls: string, errno: string, path?: string): Promise<Fault> {
  return injecting(pid, calls, `error=${errno}`, path);
}

/** Makes these system calls of a process take so much longer, as failing() makes them fail. */
export function delaying(pid: number, calls: string, delayMs: number): Promise<Fault> {
  return injecting(pid, calls, `delay_enter=${delayMs * 1000}`);
}

async function injecting(pid: number, calls: string, what: string, path?: string): Promise<Fault> {
  const rules = [...(path === undefined ? [] : ["-P", path]), "-e", `trace=${calls}`, "-e", `inject=${calls}:${what}`];
  const strace = spawn("strace", ["-f", "-p", String(pid), ...rules], { stdio: ["ignore", "ignore", "pipe"] });
  let said = "";
  strace.stderr.on("data", (text: Buffer) => (said += text.toString()));
  const ended = once(strace, "close");
  await until(() => said.includes("attached") || strace.exitCode !== null, "strace is attached");
  if (!said.includes("attached")) throw new Error(said);
  return {
    met: (times = 1) => until(() => said.split("(INJECTED)").length > times, `${times} ${calls} of ${pid} have failed`),
    async [Symbol.asyncDispose]() {
      strace.kill("SIGINT"); // it lets go of what it traces
      await soon(ended, "strace has let go");
    },
  };
}
