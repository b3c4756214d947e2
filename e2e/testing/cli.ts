import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { fileURLToPath } from "node:url";

const JOBSCTL = fileURLToPath(new URL("../../bin/jobsctl", import.meta.url));

/** How a program ended and what it wrote, a character a byte. */
export interface Ran {
  /** Null when a signal ended it, such as the SIGKILL at its limit. */
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A program that runs. */
export interface Running {
  readonly child: ChildProcess;
  readonly ended: Promise<Ran>;
  /** What it wrote so far. */
  stdout(): string;
  stderr(): string;
  /** Bytes of stdout so far. */
  received(): number;
}

/** Runs bin/jobsctl with no other environment than `env`, for as long as `limitMs`: what hangs is killed. */
export function launch(env: NodeJS.ProcessEnv, args: readonly string[], limitMs: number): Running {
  const child = spawn(JOBSCTL, args, {
    env: { PATH: process.env["PATH"], HOME: "/nonexistent", ...env },
    stdio: ["ignore", "pipe", "pipe"],
    timeout: limitMs,
    killSignal: "SIGKILL",
  });
  const written = { stdout: [] as Buffer[], stderr: [] as Buffer[] };
  let received = 0;
  child.stdout.on("data", (bytes: Buffer) => {
    written.stdout.push(bytes);
    received += bytes.length;
  });
  child.stderr.on("data", (bytes: Buffer) => written.stderr.push(bytes));
  const text = (name: "stdout" | "stderr"): string => Buffer.concat(written[name]).toString("latin1");
  return {
    child,
    ended: once(child, "close").then(([code]: (number | null)[]) => ({
      code: code ?? null,
      stdout: text("stdout"),
      stderr: text("stderr"),
    })),
    stdout: () => text("stdout"),
    stderr: () => text("stderr"),
    received: () => received,
  };
}

/** SHA-256 of bytes, or of text that has a character a byte. */
export function sha256(data: string | Uint8Array): string {
  return createHash("sha256")
    .update(typeof data === "string" ? Buffer.from(data, "latin1") : data)
    .digest("hex");
}
