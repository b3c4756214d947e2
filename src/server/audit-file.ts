import {
  closeSync,
  constants,
  existsSync,
  fchmodSync,
  fstatSync,
  openSync,
  readdirSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";

/** How much of an audit log is kept. */
export interface AuditLimits {
  /** Bytes of all its files together; with 0 there is no limit, and one file. */
  readonly limitBytes: number;
  /** How long a file that was followed by another stays after its last line, in ms. */
  readonly keepMs: number;
  /** How old the first line of a file becomes before another file follows, in ms. */
  readonly turnMs: number;
}

/** A file to which lines are appended. */
export interface AuditFile {
  /** Appends by one write(2); throws when the line was not written whole. */
  append(line: string): void;
  /**
   * Opens the path anew, which may name another file now. Returns what goes on in that, within these limits; the caller calls
   * it at once. Throws, and goes on with the file that is open, when it cannot.
   */
  reopen(limits: AuditLimits): () => void;
  close(): void;
}

/** As many files share the limit. */
const FILES = 8;
/** Suffix that `turn` puts behind the name of a file that another follows: `.2026-11-29T21-56-00.123Z`, and -N where that is taken. */
const TURNED = /^\.\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}Z(-\d+)?$/;

/**
 * Opens an audit log, mode 0600. Another file follows when this one has an eighth of the limit, or is `turnMs` old; the
 * oldest files are removed. Nothing but lines is written to what is no regular file, as /dev/stdout, and its mode stays.
 *
 * @param failed is told why no file could follow or be removed, which ends nothing
 * @throws Node's error; for a FIFO that nobody reads it is ENXIO
 */
export function openAuditFile(path: string, limits: AuditLimits, failed: (error: unknown) => void): AuditFile {
  let { limitBytes, keepMs, turnMs } = limits;
  let file = { ...openFile(path), mostBytes: mostOf(limitBytes) };
  let torn = false;
  tidy();

  /** Renames the file, and opens another in its place. Where that fails the file grows on, and `turn` is tried again later. */
  function turn(): void {
    const { fd, at, bytes } = file;
    if (at === undefined || bytes === 0) return;
    try {
      const to = rename(at);
      try {
        file = { ...openFile(path), mostBytes: mostOf(limitBytes) };
      } catch (error) {
        renameSync(to, at);
        throw error;
      }
      torn = false;
      closeSync(fd);
      tidy();
    } catch (error) {
      file.mostBytes = bytes + mostOf(limitBytes);
      file.sinceMs = Date.now();
      failed(error);
    }
  }

  function tidy(): void {
    try {
      if (file.at !== undefined && limitBytes > 0) removeOldest(file.at, limitBytes - mostOf(limitBytes), keepMs);
    } catch (error) {
      failed(error);
    }
  }

  return {
    append(line) {
      if (file.bytes + line.length > file.mostBytes || Date.now() - file.sinceMs > turnMs) turn();
      const bytes = Buffer.from(torn ? `\n${line}` : line);
      // Only a full disk or a limit cuts a line short; it must not take the next one with it.
      const written = writeSync(file.fd, bytes);
      file.bytes += written;
      torn = written < bytes.length;
      if (torn) throw new Error(`${path}: only ${written} of ${bytes.length} bytes could be written`);
    },
    reopen(next) {
      const opened = openFile(path);
      return () => {
        closeSync(file.fd);
        ({ limitBytes, keepMs, turnMs } = next);
        file = { ...opened, mostBytes: mostOf(limitBytes) };
        torn = false;
        tidy();
      };
    },
    close: () => closeSync(file.fd),
  };
}

/** Returns the bytes at which another file follows. */
function mostOf(limitBytes: number): number {
  return limitBytes === 0 ? Infinity : Math.floor(limitBytes / FILES);
}

/** A file that is open, with its path where it is a regular file, its length, and the age of its first line. */
function openFile(path: string): { fd: number; at: string | undefined; bytes: number; sinceMs: number } {
  // A FIFO that nobody reads would hold the daemon until somebody does.
  const { O_WRONLY, O_APPEND, O_CREAT, O_NONBLOCK } = constants;
  const fd = openSync(path, O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK, 0o600);
  try {
    const found = fstatSync(fd);
    const regular = found.isFile();
    if (regular) fchmodSync(fd, 0o600);
    // A symbolic link stays; the file that it names is renamed.
    const at = regular ? realpathSync(path) : undefined;
    return { fd, at, bytes: found.size, sinceMs: found.size > 0 ? found.birthtimeMs : Date.now() };
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

/** Gives a file that another will follow its name, and returns that. */
function rename(path: string): string {
  const name = `${path}.${new Date().toISOString().replaceAll(":", "-")}`;
  let to = name;
  for (let n = 1; existsSync(to); n++) to = `${name}-${n}`;
  renameSync(path, to);
  return to;
}

/** Removes the files before the one at `path` that are older than `keepMs`, or beyond `keepBytes` of the newest. */
function removeOldest(path: string, keepBytes: number, keepMs: number): void {
  const before = readdirSync(dirname(path))
    .filter((name) => name.startsWith(basename(path)) && TURNED.test(name.slice(basename(path).length)))
    .toSorted()
    .toReversed()
    .map((name) => join(dirname(path), name));
  let left = keepBytes;
  for (const old of before) {
    const { size, mtimeMs } = statSync(old);
    left -= size;
    if (left < 0 || mtimeMs < Date.now() - keepMs) rmSync(old);
  }
}
