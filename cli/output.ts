import { once } from "node:events";
import { ClosedPipe, exitCodeOfError } from "./exit.ts";

const closed = new AbortController();
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  closed.abort(error.code === "EPIPE" ? new ClosedPipe() : new Error(`stdout: ${error.message}`, { cause: error }));
});
// Where nobody can be told of it, nobody is told.
const deaf = new AbortController();
process.stderr.on("error", () => deaf.abort());

/** Data, and nothing else. Resolves when more may be written; throws ClosedPipe when nobody reads any more. */
export async function print(data: string | Uint8Array): Promise<void> {
  closed.signal.throwIfAborted();
  if (process.stdout.write(data)) return;
  await once(process.stdout, "drain", { signal: closed.signal }).catch(() => closed.signal.throwIfAborted());
}

/** The job's stderr. Resolves when more may be written. */
export async function printError(data: string | Uint8Array): Promise<void> {
  if (deaf.signal.aborted || process.stderr.write(data)) return;
  await once(process.stderr, "drain", { signal: deaf.signal }).catch(() => undefined);
}

/** What a person should know. */
export function say(message: string): void {
  process.stderr.write(`jobs: ${message}\n`);
}

/** A protobuf message as its toJSON() made it. */
export async function printJson(value: unknown): Promise<void> {
  await print(`${JSON.stringify(value, undefined, 2)}\n`);
}

/** Runs a command, tells on stderr what it throws, and ends the process with its exit code. */
export async function finish(command: string, run: () => Promise<number>): Promise<never> {
  const exitCode = await run().catch((error: unknown) => {
    if (!(error instanceof ClosedPipe)) say(printable(error instanceof Error ? error.message : String(error)));
    return exitCodeOfError(error, command);
  });
  return exit(exitCode);
}

/** Ends the process once all that was written has been handed on: a pipe is written to in the background. */
export async function exit(exitCode: number): Promise<never> {
  await Promise.all(
    [process.stdout, process.stderr].map((stream) => new Promise<void>((resolve) => stream.write("", () => resolve()))),
  );
  process.exit(exitCode);
}

/** Without the control characters by which a job's name could write on the reader's terminal. */
export function printable(text: string): string {
  return text.replace(/(?![\n\t])\p{Cc}/gu, (char) => `\\x${char.charCodeAt(0).toString(16).padStart(2, "0")}`);
}
