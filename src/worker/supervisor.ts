import { spawn } from "node:child_process";
import { mkdirSync, renameSync } from "node:fs";
import { constants } from "node:os";
import { join } from "node:path";
import { Duplex } from "node:stream";
import { JobError, invalid } from "./errors.ts";
import type { Credentials } from "./users.ts";

/** What is sent to the native supervisor for a job; src/supervisor/supervisor.h has the frames. */
export interface Launch {
  readonly directory: string;
  /** The job's cgroup, or "" where the host has none. */
  readonly cgroup: string;
  readonly cwd: string;
  readonly argv: readonly string[];
  readonly env: ReadonlyMap<string, string>;
  readonly credentials: Credentials & { readonly change: boolean };
  readonly timeLimitMs: number;
  readonly graceMs: number;
  readonly logLimitBytes: number;
  readonly logKeep: "newest" | "oldest";
}

/** The spawner process, which makes one supervisor for each job. */
export interface Spawner extends Disposable {
  /** Resolves to the job's pid once it has been exec'ed. `gone` is called once, when its supervisor is no more. */
  launch(launch: Launch, gone: () => void): Promise<number>;
  /** `gone` is called when the supervisor that an earlier daemon made for `directory` is no more, which may be now. */
  adopt(directory: string, gone: () => void): void;
  /** Makes the files of the next job in `parent` now, so that its start finds them. */
  prepare(parent: string): void;
  /** Resolves when the spawner has ended, and makes no spare any more; supervisors go on. */
  close(): Promise<void>;
}

/** What a directory with the next job's files is called until it is taken. */
export const SPARE = ".spare";

/**
 * Makes the directory of a job in `parent`, or takes the spare one. That it is there is what lets the start go on: a
 * start that outlives the daemon ends with the directory, which the next daemon removes.
 */
export function takeDirectory(parent: string, path: string): void {
  try {
    renameSync(join(parent, SPARE), path);
  } catch {
    mkdirSync(path, { mode: 0o700 });
  }
}

const HEADER_BYTES = 16;
const START_BYTES = 56;
const REPLY_BYTES = 24;
const FRAME = { start: 1, adopt: 2, prepare: 3 } as const;
const REPLY = { started: 1, failed: 2, gone: 3 } as const;
const STAGES = [
  "",
  "request",
  "directory",
  "output",
  "pipe",
  "cgroup",
  "clone",
  "stdio",
  "limits",
  "user",
  "cwd",
  "exec",
];
const ERRNO_NAMES = new Map(Object.entries(constants.errno).map(([name, number]) => [number, name]));

interface Launching {
  readonly launch: Launch;
  readonly gone: () => void;
  readonly resolve: (pid: number) => void;
  readonly reject: (error: Error) => void;
}

interface Watched {
  readonly directory: string;
  readonly gone: () => void;
}

/** A frame: the header, `bodyBytes` for the caller to fill, then the strings, each with its NUL. */
function frame(type: number, job: number, bodyBytes: number, strings: readonly string[]): Buffer {
  const text = `${strings.join("\0")}\0`;
  const size = HEADER_BYTES + bodyBytes + Buffer.byteLength(text);
  const bytes = Buffer.allocUnsafe(size);
  bytes.writeUInt32LE(size, 0);
  bytes.writeUInt32LE(type, 4);
  writeUInt64(bytes, job, 8);
  bytes.write(text, HEADER_BYTES + bodyBytes);
  return bytes;
}

/** Of a safe integer; BigInt would cost a microsecond each. */
function writeUInt64(bytes: Buffer, value: number, offset: number): void {
  bytes.writeUInt32LE(value % 2 ** 32, offset);
  bytes.writeUInt32LE(Math.floor(value / 2 ** 32), offset + 4);
}

function startFrame(job: number, launch: Launch): Buffer {
  const { argv, credentials, env } = launch;
  const strings = [launch.directory, launch.cgroup, launch.cwd, ...argv];
  for (const [name, value] of env) strings.push(`${name}=${value}`);
  const bytes = frame(FRAME.start, job, START_BYTES + 4 * credentials.groups.length, strings);
  writeUInt64(bytes, Math.ceil(launch.timeLimitMs), 16);
  writeUInt64(bytes, Math.ceil(launch.graceMs), 24);
  writeUInt64(bytes, launch.logLimitBytes, 32);
  const numbers = [
    launch.logKeep === "oldest" ? 1 : 0,
    credentials.change ? 1 : 0,
    credentials.uid,
    credentials.gid,
    credentials.groups.length,
    argv.length,
    env.size,
    0,
    ...credentials.groups,
  ];
  numbers.forEach((number, i) => bytes.writeUInt32LE(number, 40 + 4 * i));
  return bytes;
}

function failure(stage: string, number: number, launch: Launch): JobError {
  const errno = ERRNO_NAMES.get(number) ?? String(number);
  const facts = { stage, errno };
  const command = JSON.stringify(launch.argv[0]);
  if (stage === "exec" && errno === "ENOENT")
    return invalid("command", `${command} was not found, or its interpreter was not`, facts);
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
      `${JSON.stringify(launch.cwd)} is ${errno === "EACCES" ? `not open to ${launch.credentials.user}` : `no directory here (${errno})`}`,
      facts,
    );
  if (stage === "cgroup")
    return new JobError("unsupported", `the job cannot be put in its cgroup (${errno}): ${launch.cgroup}`, { facts });
  if (["EAGAIN", "ENOMEM", "EMFILE", "ENFILE", "ENOSPC", "EDQUOT"].includes(errno))
    return new JobError("exhausted", `no room for another job on this host (${stage}: ${errno})`, { facts });
  return new JobError("internal", `the job could not be started (${stage}: ${errno})`, { facts });
}

/** Starts the spawner from the binary at `path`. It is started again, and told of all jobs, should it die. */
export function openSpawner(path: string, log: (message: string) => void): Spawner {
  const launching = new Map<number, Launching>();
  const watched = new Map<number, Watched>();
  let number = 0;
  let closed = false;
  let socket: Duplex | undefined;
  let ended: Promise<void> | undefined;

  function take(reply: Buffer): void {
    const job = Number(reply.readBigUInt64LE(0));
    const kind = reply.readUInt32LE(8);
    const waiting = launching.get(job);
    launching.delete(job);
    if (kind === REPLY.started && waiting) {
      watched.set(job, { directory: waiting.launch.directory, gone: waiting.gone });
      waiting.resolve(reply.readInt32LE(12));
    } else if (kind === REPLY.failed && waiting) {
      const stage = STAGES[reply.readInt32LE(16)] ?? "unknown";
      waiting.reject(failure(stage, reply.readInt32LE(20), waiting.launch));
    } else if (kind === REPLY.gone) {
      waiting?.reject(died("the job's supervisor died before the job ran"));
      watched.get(job)?.gone();
      watched.delete(job);
    }
  }

  /** What was being launched is not to be known any more; jobs that run have their supervisors still. */
  function lose(why: string): void {
    socket = undefined;
    if (closed) return;
    log(why);
    const lost = [...launching.values()];
    launching.clear();
    for (const { reject } of lost) reject(died(why));
    if (watched.size === 0) return;
    const next = open();
    for (const [job, { directory }] of watched) next.write(frame(FRAME.adopt, job, 0, [directory]));
  }

  function open(): Duplex {
    const child = spawn(path, [], { stdio: ["ignore", "ignore", "ignore", "pipe"], detached: true, env: {} });
    const pipe = child.stdio[3];
    if (!(pipe instanceof Duplex)) throw died("the spawner has no socket");
    let held: Buffer = Buffer.alloc(0);
    pipe.on("data", (bytes: Buffer) => {
      held = held.length === 0 ? bytes : Buffer.concat([held, bytes]);
      let at = 0;
      for (; held.length - at >= REPLY_BYTES; at += REPLY_BYTES) take(held.subarray(at, at + REPLY_BYTES));
      held = held.subarray(at);
    });
    pipe.on("error", () => {}); // 'exit' follows
    child.on("error", (error) => lose(`the spawner cannot be run: ${error.message}`));
    ended = new Promise((resolve) => child.once("close", () => resolve()));
    child.on("exit", (code, signal) => lose(`the spawner ended (${signal ?? code})`));
    socket = pipe;
    return pipe;
  }

  open();
  return {
    launch(launch, gone) {
      const job = ++number;
      return new Promise((resolve, reject) => {
        launching.set(job, { launch, gone, resolve, reject });
        (socket ?? open()).write(startFrame(job, launch));
      });
    },
    adopt(directory, gone) {
      const job = ++number;
      watched.set(job, { directory, gone });
      (socket ?? open()).write(frame(FRAME.adopt, job, 0, [directory]));
    },
    prepare(parent) {
      socket?.write(frame(FRAME.prepare, 0, 0, [parent]));
    },
    async close() {
      closed = true;
      socket?.destroy();
      await ended;
    },
    [Symbol.dispose]() {
      closed = true;
      socket?.destroy();
    },
  };
}

function died(message: string): JobError {
  return new JobError("internal", message, { facts: { stage: "supervisor" } });
}
