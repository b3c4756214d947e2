import { spawn } from "node:child_process";
import { closeSync, constants, openSync, renameSync, writeSync } from "node:fs";
import { Socket } from "node:net";
import { constants as os } from "node:os";
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

/** The spawner process, which makes one supervisor for each job, ahead of it. */
export interface Spawner extends Disposable {
  /**
   * Makes `launch.directory` and starts the job in it; resolves to the job's pid once it has been exec'ed. Where a spare
   * supervisor is ready, all but that has been done when this returns. `record` is called while the supervisor prepares;
   * the job does not run before it has returned, nor if it throws. A start that outlives the daemon ends with its
   * directory, which the next daemon removes. `gone` is called once, when the supervisor is no more.
   */
  launch(launch: Launch, record: () => void, gone: () => void): Promise<number>;
  /** `gone` is called when the supervisor that an earlier daemon made for `directory` is no more, which may be now. */
  adopt(directory: string, gone: () => void): void;
  /** Has as many spares made as are missing: for when nobody waits. A start asks for no more than half of them. */
  refill(): void;
  /** Resolves when a first supervisor is ready, or cannot be had. */
  readonly ready: Promise<void>;
  /** Resolves when the spawner and its spares have ended; supervisors go on. */
  close(): Promise<void>;
}

/** How the directory of a supervisor that has no job yet begins; its pid follows. */
export const SPARE = ".spare-";

/** Supervisors that wait for a job. Each takes 0.1 MB. */
const SPARES = 4;
const HEADER_BYTES = 16;
const START_BYTES = 56;
const REPLY_BYTES = 24;
/** Written to a FIFO whole or not at all; PIPE_BUF, pipe(7). */
const ATOMIC_BYTES = 4096;
/** What follows a start: it may run, or is not to be. */
const GO = Buffer.of(1);
const ABORT = Buffer.of(0);
const FRAME = { start: 1, adopt: 2, spare: 3 } as const;
const REPLY = { started: 1, failed: 2, gone: 3, ready: 4 } as const;
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
const ERRNO_NAMES = new Map(Object.entries(os.errno).map(([name, number]) => [number, name]));

interface Launching {
  readonly launch: Launch;
  readonly record: () => void;
  readonly gone: () => void;
  readonly resolve: (pid: number) => void;
  readonly reject: (error: unknown) => void;
}

interface Spare {
  readonly directory: string;
  /** Its FIFO, open for writing. */
  readonly control: number;
}

/** A supervisor, by the number that it was asked for with. */
type Supervisor =
  | { readonly state: "asked" }
  | ({ readonly state: "spare" } & Spare)
  | ({ readonly state: "launching" } & Launching)
  | { readonly state: "running"; readonly directory: string; readonly gone: () => void };

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
  const strings = [launch.cgroup, launch.cwd, ...argv];
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

function failure(stage: string, errno: string, launch: Launch): JobError {
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

/**
 * Has a spare prepare for a job, has that recorded meanwhile, and lets it go on. False when the spare had died, and
 * nothing was recorded. Throws what `record` throws, and JobError when the directory cannot be had.
 */
async function give({ control, directory }: Spare, number: number, { launch, record }: Launching): Promise<boolean> {
  const bytes = startFrame(number, launch);
  // What is longer than a FIFO holds is written while the supervisor reads it.
  const long = bytes.length > ATOMIC_BYTES ? new Socket({ fd: control, readable: false }) : undefined;
  let last = ABORT;
  try {
    if (long) await written(long, bytes);
    else writeSync(control, bytes);
    record();
    take(directory, launch);
    last = GO;
    return true;
  } catch (error) {
    if (codeOf(error) === "EPIPE") return false;
    throw error;
  } finally {
    if (long) long.end(last);
    else end(control, last);
  }
}

function written(socket: Socket, bytes: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    socket.on("error", reject);
    socket.write(bytes, (error) => (error ? reject(error) : resolve()));
  });
}

function take(directory: string, launch: Launch): void {
  try {
    renameSync(directory, launch.directory);
  } catch (error) {
    throw failure("directory", codeOf(error), launch);
  }
}

/** Whoever watches the FIFO must find no writer in it but its supervisor, so it is closed. */
function end(control: number, last: Buffer): void {
  try {
    writeSync(control, last);
  } catch {
    // It has failed already, and said so, or died.
  } finally {
    closeSync(control);
  }
}

/**
 * Starts the spawner from the binary at `path`; it makes its spares in `parent`, which is where the directories of jobs
 * are. It is started again, and told of all jobs, should it die.
 */
export function openSpawner(path: string, parent: string, log: (message: string) => void): Spawner {
  const supervisors = new Map<number, Supervisor>();
  /** Numbers of those in this state, the oldest first. */
  const spares = new Set<number>();
  const asked = new Set<number>();
  const waiting: Launching[] = [];
  const first = Promise.withResolvers<void>();
  let last = 0;
  let closed = false;
  let socket: Duplex | undefined;
  let ended: Promise<void> | undefined;

  function ask(least: number): void {
    for (let missing = least + waiting.length - spares.size - asked.size; missing > 0; missing--) {
      asked.add(++last);
      supervisors.set(last, { state: "asked" });
      (socket ?? open()).write(frame(FRAME.spare, last, 0, []));
    }
  }

  function begin(launching: Launching): void {
    const [number] = spares;
    const spare = number === undefined ? undefined : supervisors.get(number);
    if (number === undefined || spare?.state !== "spare") {
      waiting.push(launching);
      ask(0);
      return;
    }
    spares.delete(number);
    supervisors.set(number, { state: "launching", ...launching });
    void hand(spare, number, launching);
    ask(SPARES / 2);
  }

  async function hand(spare: Spare, number: number, launching: Launching): Promise<void> {
    try {
      if (await give(spare, number, launching)) return;
      supervisors.delete(number);
      begin(launching);
    } catch (error) {
      supervisors.delete(number);
      launching.reject(error);
    }
  }

  function ready(number: number, pid: number): void {
    asked.delete(number);
    const directory = join(parent, `${SPARE}${pid}`);
    try {
      const control = openSync(join(directory, "control"), constants.O_WRONLY | constants.O_NONBLOCK);
      supervisors.set(number, { state: "spare", directory, control });
      spares.add(number);
    } catch (error) {
      supervisors.delete(number);
      // ENXIO: it has died already, and there are others.
      if (codeOf(error) === "ENXIO") ask(0);
      else waiting.shift()?.reject(died(`a supervisor cannot be reached (${codeOf(error)})`));
    }
    const next = spares.has(number) ? waiting.shift() : undefined;
    if (next) begin(next);
  }

  /** Takes a supervisor that runs no job from the books. Returns the start that it was for. */
  function drop(number: number): Launching | undefined {
    const known = supervisors.get(number);
    supervisors.delete(number);
    spares.delete(number);
    if (known?.state === "spare") closeSync(known.control);
    return known?.state === "launching" ? known : asked.delete(number) ? waiting.shift() : undefined;
  }

  function hear(reply: Buffer): void {
    first.resolve();
    const number = Number(reply.readBigUInt64LE(0));
    const kind = reply.readUInt32LE(8);
    const pid = reply.readInt32LE(12);
    const known = supervisors.get(number);
    if (kind === REPLY.ready && known?.state === "asked") {
      ready(number, pid);
    } else if (kind === REPLY.started && known?.state === "launching") {
      supervisors.set(number, { state: "running", directory: known.launch.directory, gone: known.gone });
      known.resolve(pid);
    } else if (kind === REPLY.failed) {
      const failed = drop(number);
      const errno = reply.readInt32LE(20);
      const stage = STAGES[reply.readInt32LE(16)] ?? "unknown";
      failed?.reject(failure(stage, ERRNO_NAMES.get(errno) ?? String(errno), failed.launch));
    } else if (kind === REPLY.gone && known?.state === "running") {
      supervisors.delete(number);
      known.gone();
    } else if (kind === REPLY.gone) {
      drop(number)?.reject(died("the job's supervisor died before the job ran"));
    }
  }

  /** What was being launched is not to be known any more; jobs that run have their supervisors still. */
  function lose(why: string): void {
    socket?.destroy(); // or spares would not hear of it
    socket = undefined;
    first.resolve();
    if (closed) return;
    log(why);
    for (const number of supervisors.keys())
      if (supervisors.get(number)?.state !== "running") drop(number)?.reject(died(why));
    for (const each of waiting.splice(0)) each.reject(died(why));
    for (const [number, known] of supervisors)
      if (known.state === "running") (socket ?? open()).write(frame(FRAME.adopt, number, 0, [known.directory]));
  }

  function open(): Duplex {
    const child = spawn(path, [parent], { stdio: ["ignore", "ignore", "ignore", "pipe"], detached: true, env: {} });
    const pipe = child.stdio[3];
    if (!(pipe instanceof Duplex)) throw died("the spawner has no socket");
    let held: Buffer = Buffer.alloc(0);
    pipe.on("data", (bytes: Buffer) => {
      held = held.length === 0 ? bytes : Buffer.concat([held, bytes]);
      let at = 0;
      for (; held.length - at >= REPLY_BYTES; at += REPLY_BYTES) hear(held.subarray(at, at + REPLY_BYTES));
      held = held.subarray(at);
    });
    pipe.on("error", () => {}); // 'exit' follows
    child.on("error", (error) => lose(`the spawner cannot be run: ${error.message}`));
    ended = new Promise((resolve) => child.once("close", () => resolve()));
    child.on("exit", (code, signal) => lose(`the spawner ended (${signal ?? code})`));
    socket = pipe;
    return pipe;
  }

  function close(): void {
    closed = true;
    for (const number of spares) drop(number);
    socket?.destroy();
  }

  ask(SPARES);
  return {
    launch: (launch, record, gone) =>
      new Promise((resolve, reject) => begin({ launch, record, gone, resolve, reject })),
    adopt(directory, gone) {
      supervisors.set(++last, { state: "running", directory, gone });
      (socket ?? open()).write(frame(FRAME.adopt, last, 0, [directory]));
    },
    refill: () => ask(SPARES),
    ready: first.promise,
    async close() {
      close();
      await ended;
    },
    [Symbol.dispose]: close,
  };
}

function codeOf(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : "unknown";
}

function died(message: string): JobError {
  return new JobError("internal", message, { facts: { stage: "supervisor" } });
}
