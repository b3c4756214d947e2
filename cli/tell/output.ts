import { once } from "node:events";
import { constants } from "node:os";
import type { Writable } from "node:stream";
import { reasonOf } from "../../src/os/errno.ts";
import { isTerminal, standardWriters } from "./descriptors.ts";
import { ClosedPipe, exitCodeOfError } from "./exit.ts";
import type { MessageName } from "./json.ts";
import { type Line, rendered, visibleJson } from "./text.ts";

/* The one place that writes: text as lines, which are escaped; a job's own bytes as they are; JSON. */

const LAST_WORDS_MS = 200;
const CLEAR_LINE = "\r\x1b[K";

const { stdout, stderr } = standardWriters();
const closed = new AbortController();
/** Aborted with the error to throw, once stdout cannot be written to. */
export const stdoutClosed: AbortSignal = closed.signal;
stdout.on("error", (error) => closed.abort(failureOf(error)));
// There is no place to report that stderr has failed.
const deaf = new AbortController();
stderr.on("error", () => deaf.abort());

/** How wide the terminal is that stdout is; undefined where it is none, 0 where it does not tell. */
export const terminalWidth: number | undefined = isTerminal(1) ? (process.stdout.columns ?? 0) : undefined;

/**
 * Puts these streams in the place of Node's own, which are made when something touches them: loading node:util does. To be
 * called before that.
 */
export function replaceNodes(): void {
  Object.defineProperties(process, { stdout: { value: stdout }, stderr: { value: stderr } });
}

/** Lines of data. Resolves when more may be written; throws ClosedPipe when nobody reads any more. */
export async function print(lines: readonly Line[]): Promise<void> {
  await toStdout(lines.map((line) => `${rendered(line, stdout)}\n`).join(""));
}

/** A line of a terminal, over the one that was written so before; `last` ends it. */
export async function printOver(line: Line, last: boolean): Promise<void> {
  await toStdout(`${CLEAR_LINE}${rendered(line, stdout)}${last ? "\n" : ""}`);
}

/** A job's own bytes, as they are. Resolves when more may be written; throws ClosedPipe as print() does. */
export async function printBytes(bytes: Uint8Array, to: "stdout" | "stderr"): Promise<void> {
  if (to === "stdout") return toStdout(bytes);
  if (!deaf.signal.aborted) await written(stderr, bytes, deaf.signal).catch(() => undefined);
}

/** A message of the API as protobuf's canonical JSON, from its bytes on the wire; `compact` in one line. */
export async function printMessage(
  name: MessageName,
  encoded: { finish(): Uint8Array },
  options: { readonly compact?: boolean } = {},
): Promise<void> {
  const { messageToJson } = await import("./json.ts");
  await printJson(messageToJson(name, encoded.finish()), options);
}

/** The answers to a command as one document: of one job its message, of several a list of them, in the order asked. */
export async function printAnswers(
  name: MessageName,
  answers: readonly { finish(): Uint8Array }[],
  asked: readonly string[],
): Promise<void> {
  const { messageToJson } = await import("./json.ts");
  const messages = answers.map((answer) => messageToJson(name, answer.finish()));
  if (asked.length > 1) await printJson(messages);
  else for (const message of messages) await printJson(message);
}

/** JSON in several lines, or `compact` in one. */
export async function printJson(value: unknown, { compact = false } = {}): Promise<void> {
  await toStdout(`${visibleJson(JSON.stringify(value, undefined, compact ? undefined : 2))}\n`);
}

/** Tells a person something on stderr; `more` stands in lines of its own below it. */
export function say(message: string, more: readonly string[] = []): void {
  sayAs("jobsctl", message, more);
}

/** Returns a line as stderr would have it, for what writes there at once. */
export function lineForStderr(line: Line): string {
  return `${rendered(line, stderr)}\n`;
}

/** Does the same as say(), for another program. */
function sayAs(program: string, message: string, more: readonly string[] = []): void {
  const lines = [`${program}: ${message}`, ...more.map((line) => `  ${line}`)];
  stderr.write(lines.map(lineForStderr).join(""));
}

/** Does what takes seconds, and tells of it on stderr meanwhile where that is a terminal. */
export async function working<Result>(what: string, work: () => Promise<Result>): Promise<Result> {
  if (!isTerminal(2)) return work();
  stderr.write(`${what}…`);
  try {
    return await work();
  } finally {
    stderr.write(CLEAR_LINE);
  }
}

/** Tells an error; nothing when stdout's reader has gone. */
export function sayError(error: unknown, program = "jobsctl"): void {
  if (error instanceof ClosedPipe) return;
  const more = error instanceof Error && "more" in error && Array.isArray(error.more) ? error.more.map(String) : [];
  sayAs(program, reasonOf(error), more);
}

/** Runs a command, tells on stderr what it throws, and ends the process with its exit code. */
export async function finish(command: string, run: () => Promise<number>): Promise<never> {
  const exitCode = await run()
    .then(async (code) => {
      await flushed(stdout);
      if (stdout.errored) throw failureOf(stdout.errored);
      return code;
    })
    .catch((error: unknown) => {
      sayError(error);
      return exitCodeOfError(error, command);
    });
  return exit(exitCode);
}

/** Ends the process once all that was written has been handed on: a pipe is written to in the background. */
export async function exit(exitCode: number): Promise<never> {
  await Promise.all([stdout, stderr].map(flushed));
  process.exit(exitCode);
}

/** Ends the process with 128+N, whatever has not been read yet. */
export async function exitBy(signal: NodeJS.Signals): Promise<never> {
  await Promise.race([flushed(stderr), new Promise((settle) => setTimeout(settle, LAST_WORDS_MS))]);
  // A thread that waits for a reader holds up exit(3), and no signal; a shell tells 128+N of that, too.
  if (stdout.writableLength > 0 || stderr.writableLength > 0) {
    process.removeAllListeners(signal);
    process.kill(process.pid, signal);
  }
  process.exit(128 + constants.signals[signal]);
}

async function toStdout(data: string | Uint8Array): Promise<void> {
  closed.signal.throwIfAborted();
  await written(stdout, data, closed.signal);
}

async function written(stream: Writable, data: string | Uint8Array, broken: AbortSignal): Promise<void> {
  if (stream.write(data)) return;
  await once(stream, "drain", { signal: broken }).catch(() => broken.throwIfAborted());
}

function failureOf(error: NodeJS.ErrnoException): Error {
  return error.code === "EPIPE" ? new ClosedPipe() : new Error(`stdout: ${error.message}`, { cause: error });
}

function flushed(stream: Writable): Promise<void> {
  return new Promise((resolve) => {
    if (stream.errored) resolve();
    else stream.once("error", () => resolve()).write("", () => resolve());
  });
}
