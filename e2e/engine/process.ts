import { spawn, type ChildProcess } from "node:child_process";
import { closeSync, openSync, readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";

/** A program that failed, with the end of what it said. */
export class CommandError extends Error {
  override readonly name = "CommandError";
  /** What the program wrote, stdout and stderr together. */
  readonly output: string;
  constructor(message: string, output = "") {
    super(`${message}${output ? `:\n${tail(output)}` : ""}`);
    this.output = output;
  }
}

export interface RunOptions {
  readonly signal: AbortSignal;
  readonly env?: NodeJS.ProcessEnv;
  readonly cwd?: string;
}

/** The last 25 lines. */
export function tail(text: string): string {
  return text.trimEnd().split("\n").slice(-25).join("\n");
}

/**
 * Runs a program to its end. An abort ends it with what it has started, and is thrown once nothing of it is left.
 *
 * @returns its stdout, without the last newline
 * @throws CommandError when it cannot be run or does not exit with 0
 */
export async function run(command: string, args: readonly string[], options: RunOptions): Promise<string> {
  const said = { all: "", stdout: "" };
  const how = await finish(command, args, "pipe", options, ({ stdout, stderr }) => {
    stdout?.setEncoding("utf8").on("data", (text: string) => {
      said.all += text;
      said.stdout += text;
    });
    stderr?.setEncoding("utf8").on("data", (text: string) => (said.all += text));
  });
  if (how !== "exit 0") throw new CommandError(`${command} ${args.join(" ")}: ${how}`, said.all);
  return said.stdout.trimEnd();
}

/** Runs a program as `run` does, with its output where this process's goes. Returns its exit code, or 1. */
export async function runVisibly(command: string, args: readonly string[], options: RunOptions): Promise<number> {
  const how = await finish(command, args, "inherit", options);
  return Number(/^exit (\d+)$/.exec(how)?.[1] ?? 1);
}

async function finish(
  command: string,
  args: readonly string[],
  output: "pipe" | "inherit",
  { signal, env, cwd }: RunOptions,
  started?: (child: ChildProcess) => void,
): Promise<string> {
  signal.throwIfAborted();
  // A group of its own, so that it can be ended whole, and so that a terminal's Ctrl-C comes to us alone.
  const child = spawn(command, args, {
    detached: true,
    stdio: ["ignore", output, output],
    ...(env && { env }),
    ...(cwd && { cwd }),
  });
  started?.(child);
  const stop = (): void => void end(child, 10_000);
  signal.addEventListener("abort", stop, { once: true });
  const how = await ending(child);
  signal.removeEventListener("abort", stop);
  signal.throwIfAborted();
  return how;
}

/** Does two things at once. When one fails, the other is aborted, and the failure is thrown when both have ended. */
export async function both<A, B>(
  signal: AbortSignal,
  first: (signal: AbortSignal) => Promise<A>,
  second: (signal: AbortSignal) => Promise<B>,
): Promise<[A, B]> {
  const failure = new AbortController();
  const either = AbortSignal.any([signal, failure.signal]);
  const running = [first(either), second(either)] as const;
  for (const each of running) each.catch((error: unknown) => failure.abort(error));
  await Promise.allSettled(running);
  either.throwIfAborted();
  return Promise.all(running);
}

/** A program that runs beside this one, and ends when it is disposed of, or when this process dies, however it does. */
export interface Service extends AsyncDisposable {
  /** Settles with how it ended. */
  readonly ended: Promise<string>;
  /** What it has said so far. */
  output(): string;
}

/** @param stopMs how long it has to end after SIGTERM, in ms */
export function start(command: string, args: readonly string[], log: string, stopMs: number): Service {
  const fd = openSync(log, "w");
  const child = spawn("setpriv", ["--pdeathsig", "KILL", command, ...args], {
    detached: true,
    stdio: ["ignore", fd, fd],
  });
  closeSync(fd);
  const ended = ending(child);
  return {
    ended,
    output: () => readFileSync(log, "utf8"),
    async [Symbol.asyncDispose]() {
      await Promise.race([end(child, stopMs), ended]);
      await ended;
    },
  };
}

/** Resolves when `check` does; tries again while it throws. Throws when the time is over or the service has ended. */
export async function ready(
  name: string,
  service: Service,
  check: (signal: AbortSignal) => Promise<unknown>,
  { signal, timeoutMs }: { readonly signal: AbortSignal; readonly timeoutMs: number },
): Promise<void> {
  const deadline = AbortSignal.timeout(timeoutMs);
  let how: string | undefined;
  void service.ended.then((end) => (how = end));
  for (;;) {
    try {
      await check(AbortSignal.any([signal, AbortSignal.timeout(5000)]));
      return;
    } catch (error) {
      signal.throwIfAborted();
      if (how !== undefined) throw new CommandError(`${name} ended: ${how}`, service.output());
      if (deadline.aborted)
        throw new CommandError(
          `${name} does not answer after ${timeoutMs / 1000} s (${error instanceof Error ? error.message : String(error)})`,
          service.output(),
        );
      await delay(250, undefined, { signal });
    }
  }
}

function ending(child: ChildProcess): Promise<string> {
  return new Promise((resolve) => {
    child.once("error", (error) => resolve(error.message));
    child.once("close", (code, signal) => resolve(signal ?? `exit ${code}`));
  });
}

async function end(child: ChildProcess, graceMs: number): Promise<void> {
  kill(child, "SIGTERM");
  await delay(graceMs, undefined, { ref: false });
  kill(child, "SIGKILL");
}

function kill({ pid, exitCode, signalCode }: ChildProcess, signal: NodeJS.Signals): void {
  if (pid === undefined || exitCode !== null || signalCode !== null) return;
  try {
    process.kill(-pid, signal);
  } catch {
    // The whole group has ended.
  }
}
