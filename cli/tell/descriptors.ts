import { constants, createWriteStream, fstatSync, openSync, type Stats, writeSync } from "node:fs";
import type { Socket } from "node:net";
import { Writable } from "node:stream";
import { contentOf } from "../../src/os/proc.ts";

/*
 * stdout and stderr are descriptions that the caller may share with other programs. libuv makes that of a pipe or a socket
 * non-blocking, and the others' writes fail with EAGAIN then; so process.stdout is not for these.
 */

/** A stream to a descriptor, whose description stays as it is. */
function writerTo(fd: 1 | 2): Writable {
  // libuv opens a terminal anew by itself.
  if (isTerminal(fd)) return fd === 1 ? process.stdout : process.stderr;
  const stats = fstatSync(fd);
  if (stats.isFile() || isMemory(stats)) return atOnce(fd);
  const own = stats.isFIFO() ? reopened(fd) : stats.isSocket() && isNonBlocking(fd) ? fd : undefined;
  if (own !== undefined) return socketOf(own);
  // Writes in a thread, so that a reader that stalls holds up nothing else.
  return createWriteStream("", { fd, autoClose: false });
}

/** stdout and stderr; one stream where both are one file, so that what comes first is written first. */
export function standardWriters(): { readonly stdout: Writable; readonly stderr: Writable } {
  const stdout = writerTo(1);
  const [out, err] = [fstatSync(1), fstatSync(2)];
  return { stdout, stderr: out.dev === err.dev && out.ino === err.ino ? stdout : writerTo(2) };
}

/** Sockets that are kept, because one without a reference is closed. */
const sockets: Socket[] = [];

/**
 * A descriptor for synchronous writes that do not wait for a reader: another description of the same pipe or terminal. A
 * socket has but one, which stays non-blocking: a daemon must not wait for whoever reads its log.
 */
export function unwaiting(fd: 1 | 2): number {
  const stats = fstatSync(fd);
  if (stats.isSocket()) sockets.push(socketOf(fd));
  return (stats.isFIFO() || isTerminal(fd) ? reopened(fd) : undefined) ?? fd;
}

/** Whether a descriptor is a terminal. node:tty brings node:net along, and is not loaded for what can be none. */
export function isTerminal(fd: number): boolean {
  const stats = fstatSync(fd);
  return stats.isCharacterDevice() && !isMemory(stats) && process.getBuiltinModule("node:tty").isatty(fd);
}

const MEMORY_MAJOR = 1;

/** Tells whether it is /dev/null or the like, which no reader can hold up. */
function isMemory(stats: Stats): boolean {
  return stats.isCharacterDevice() && ((stats.rdev >> 8) & 0xfff) === MEMORY_MAJOR;
}

/** Writes to a file, which no reader holds up, without a thread: as Node's own stdout does. */
function atOnce(fd: number): Writable {
  return new Writable({
    decodeStrings: true,
    write(chunk: Uint8Array, _encoding, done) {
      try {
        for (let rest = chunk; rest.length > 0;) rest = rest.subarray(writeSync(fd, rest));
        done();
      } catch (error) {
        done(error instanceof Error ? error : new Error(String(error)));
      }
    },
  });
}

/** Loads node:net only where it is needed: it is a fifth of what `jobsctl --help` adds to an empty Node. */
function socketOf(fd: number): Socket {
  const { Socket } = process.getBuiltinModule("node:net");
  return new Socket({ fd, readable: false, writable: true });
}

/** A non-blocking description of its own; undefined where there can be none: another user's pipe, no reader, no /proc. */
function reopened(fd: number): number | undefined {
  const { O_WRONLY, O_NONBLOCK, O_NOCTTY } = constants;
  try {
    return openSync(`/proc/self/fd/${fd}`, O_WRONLY | O_NONBLOCK | O_NOCTTY);
  } catch {
    return undefined;
  }
}

function isNonBlocking(fd: number): boolean {
  const [, flags = "0"] = /^flags:\s*(\d+)/m.exec(contentOf(`/proc/self/fdinfo/${fd}`) ?? "") ?? [];
  return (Number.parseInt(flags, 8) & constants.O_NONBLOCK) !== 0;
}
