import { constants as os } from "node:os";
import { bytesOf } from "../../os/bytes.ts";
import type { Rlimit } from "../limits/rlimits.ts";
import type { Chosen } from "../system/users.ts";

/* Messages to the native spawner and its supervisors, and from them; src/supervisor/supervisor.h has the frames. */

/** A start, as a supervisor is told it. */
export interface Launch {
  readonly directory: string;
  /** The job's cgroup, or "" where the host has none. */
  readonly cgroup: string;
  readonly cwd: string;
  readonly argv: readonly string[];
  readonly env: ReadonlyMap<string, string>;
  readonly credentials: Chosen;
  readonly timeLimitMs: number;
  readonly graceMs: number;
  readonly logLimitBytes: number;
  readonly logKeep: "newest" | "oldest";
  readonly network: "host" | "none";
  readonly privateTmp: boolean;
  readonly mergeOutput: boolean;
  /** The job may make user namespaces. */
  readonly userNamespaces: boolean;
  readonly rlimits: readonly Rlimit[];
  readonly umask: number;
  readonly oomScoreAdj: number;
  /** The eBPF program with its device rules; absent where it has none. */
  readonly devices?: Uint8Array;
}

/** The size of a frame's header. */
export const HEADER_BYTES = 16;
const START_BYTES = 88;
const RLIMIT_BYTES = 24;
const REPLY_BYTES = 24;
const FRAME = { start: 1, adopt: 2, spare: 3, devices: 4 } as const;
const REPLIES = [undefined, "started", "failed", "gone", "ready", "lacks", "done"] as const;
/** The stages of a start, in the order of the supervisor's numbers. */
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
  "isolation",
  "devices",
];
/** The list is read backwards, so that 11 is EAGAIN and not EWOULDBLOCK. */
const ERRNO_NAMES = new Map(
  Object.entries(os.errno)
    .toReversed()
    .map(([name, number]) => [number, name]),
);

/** A frame: the header, `bodyBytes` for the caller to fill, then the strings, each with its NUL. */
function frame(type: number, job: number, bodyBytes: number, strings: readonly string[]): Buffer {
  const text = bytesOf(`${strings.join("\0")}\0`);
  const size = HEADER_BYTES + bodyBytes + text.length;
  const bytes = Buffer.allocUnsafe(size);
  bytes.writeUInt32LE(size, 0);
  bytes.writeUInt32LE(type, 4);
  writeUInt64(bytes, job, 8);
  bytes.set(text, HEADER_BYTES + bodyBytes);
  return bytes;
}

/** Writes a safe integer; BigInt would cost a microsecond each. */
function writeUInt64(bytes: Buffer, value: number, offset: number): void {
  bytes.writeUInt32LE(value % 2 ** 32, offset);
  bytes.writeUInt32LE(Math.floor(value / 2 ** 32), offset + 4);
}

/** RLIM_INFINITY is all ones. */
function writeLimit(bytes: Buffer, value: number, offset: number): void {
  if (value === Infinity) bytes.fill(0xff, offset, offset + 8);
  else writeUInt64(bytes, value, offset);
}

/** Asks the spawner for a spare. */
export function spareFrame(supervisor: number): Buffer {
  return frame(FRAME.spare, supervisor, 0, []);
}

/** Asks the spawner to tell when the supervisor that an earlier daemon made for `directory` is gone. */
export function adoptFrame(supervisor: number, directory: string): Buffer {
  return frame(FRAME.adopt, supervisor, 0, [directory]);
}

/** Has the spawner put `program` in the place of a running job's device rules. */
export function devicesFrame(number: number, cgroup: string, program: Uint8Array): Buffer {
  const bytes = Buffer.concat([frame(FRAME.devices, number, 0, [cgroup]), program]);
  bytes.writeUInt32LE(bytes.length, 0);
  return bytes;
}

/** Tells a spare its job. */
export function startFrame(job: number, launch: Launch): Buffer {
  const { argv, credentials, devices, env, rlimits } = launch;
  const strings = [launch.cgroup, launch.cwd, ...argv];
  for (const [name, value] of env) strings.push(`${name}=${value}`);
  const devicesAt = HEADER_BYTES + START_BYTES + RLIMIT_BYTES * rlimits.length;
  const groupsAt = devicesAt + (devices?.length ?? 0);
  const bytes = frame(FRAME.start, job, groupsAt - HEADER_BYTES + 4 * credentials.groups.length, strings);
  writeUInt64(bytes, Math.ceil(launch.timeLimitMs), 16);
  writeUInt64(bytes, Math.ceil(launch.graceMs), 24);
  writeUInt64(bytes, launch.logLimitBytes, 32);
  const numbers = [
    launch.logKeep === "oldest" ? 1 : 0,
    credentials.alone ? 2 : credentials.change ? 1 : 0,
    credentials.uid,
    credentials.gid,
    credentials.groups.length,
    argv.length,
    env.size,
    rlimits.length,
    launch.network === "none" ? 1 : 0,
    launch.privateTmp ? 1 : 0,
    launch.umask,
    launch.oomScoreAdj,
    devices?.length ?? 0,
    launch.userNamespaces ? 1 : 0,
    launch.mergeOutput ? 1 : 0,
    0,
  ];
  numbers.forEach((number, i) => bytes.writeUInt32LE(number, 40 + 4 * i));
  rlimits.forEach(({ resource, soft, hard }, i) => {
    const at = HEADER_BYTES + START_BYTES + RLIMIT_BYTES * i;
    writeUInt64(bytes, resource, at);
    writeLimit(bytes, soft, at + 8);
    writeLimit(bytes, hard, at + 16);
  });
  if (devices) bytes.set(devices, devicesAt);
  credentials.groups.forEach((group, i) => bytes.writeUInt32LE(group, groupsAt + 4 * i));
  return bytes;
}

/** A message from the spawner about one supervisor. */
export interface Reply {
  readonly supervisor: number;
  /** Undefined for what this daemon does not know. */
  readonly kind: (typeof REPLIES)[number];
  /**
   * Of the job once it has started, of the supervisor that is ready; the bit of a part that the host lacks; the signal that
   * killed a supervisor that is gone.
   */
  readonly pid: number;
  /** The stage at which a start failed, and why; or why a supervisor wrote no exit record. "0" is no reason. */
  readonly stage: string;
  readonly errno: string;
}

/** From the first REPLY_BYTES of `bytes`. */
function readReply(bytes: Buffer): Reply {
  const errno = bytes.readInt32LE(20);
  return {
    supervisor: Number(bytes.readBigUInt64LE(0)),
    kind: REPLIES[bytes.readUInt32LE(8)],
    pid: bytes.readInt32LE(12),
    stage: STAGES[bytes.readInt32LE(16)] ?? "unknown",
    errno: ERRNO_NAMES.get(errno) ?? String(errno),
  };
}

/** Takes what comes in pieces of any size, and calls `hear` with each reply. */
export function eachReply(hear: (reply: Reply) => void): (bytes: Buffer) => void {
  let held: Buffer = Buffer.alloc(0);
  return (bytes) => {
    held = held.length === 0 ? bytes : Buffer.concat([held, bytes]);
    let at = 0;
    for (; held.length - at >= REPLY_BYTES; at += REPLY_BYTES) hear(readReply(held.subarray(at)));
    held = held.subarray(at);
  };
}
