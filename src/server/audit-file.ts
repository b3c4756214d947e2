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

/** How much of an audit log there is. */
export interface AuditLimits {
  /** Of the file and those before it together, in bytes; 0 for no limit, and one file. */
  readonly limitBytes: number;
  /** Files before it are removed so long after their last line, in ms. */
  readonly keepMs: number;
  /** A file is followed by another when its first line is so old, in ms. */
  readonly turnMs: number;
}

/** Appended to, a line at a time. */
export interface AuditFile {
  /** One write(2); throws when it was not written whole. */
  append(line: string): void;
  /** Opens the path anew, which may name another file now. Throws, and goes on with the file that is open, when it cannot. */
  reopen(): void;
  close(): void;
}

/** So many files share the limit. */
const FILES = 8;
/** As `turn` names what came before: FILE.2026-11-29T21-56-00.123Z, and -N where that is there. */
const TURNED = /^\.\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}Z(-\d+)?$/;

/**
 * Opens an audit log, mode 0600. A file is followed by another when it has an eighth of the limit, or is `turnMs` old; the
 * oldest go. What is no regular file, as /dev/stdout, is written to and nothing else: not even its mode is changed.
 *
 * @param failed is told why a file could not be followed or removed, which ends nothing
 * @throws Node's error, and where nobody reads a FIFO ENXIO
 */
export function openAuditFile(
  path: string,
  { limitBytes, keepMs, turnMs }: AuditLimits,
  failed: (error: unknown) => void,
): AuditFile {
  const mostBytes = limitBytes === 0 ? Infinity : Math.floor(limitBytes / FILES);
  let file = open();
  let torn = false;
  tidy();

  function open() {
    // Without a reader a FIFO would hold the daemon until there is one.
    const { O_WRONLY, O_APPEND, O_CREAT, O_NONBLOCK } = constants;
    const fd = openSync(path, O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK, 0o600);
    try {
      const found = fstatSync(fd);
      const regular = found.isFile();
      if (regular) fchmodSync(fd, 0o600);
      // The link stays, and what it names is followed.
      const at = regular ? realpathSync(path) : undefined;
      return { fd, at, bytes: found.size, sinceMs: found.size > 0 ? found.birthtimeMs : Date.now(), mostBytes };
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  /** Renames the file, and opens another in its place. Where that fails the file grows on, and it is tried again later. */
  function turn(): void {
    const before = file;
    if (before.at === undefined || before.bytes === 0) return;
    const name = `${before.at}.${new Date().toISOString().replaceAll(":", "-")}`;
    let to = name;
    for (let n = 1; existsSync(to); n++) to = `${name}-${n}`;
    try {
      renameSync(before.at, to);
      try {
        file = open();
      } catch (error) {
        renameSync(to, before.at);
        throw error;
      }
      torn = false;
      closeSync(before.fd);
      tidy();
    } catch (error) {
      before.mostBytes = before.bytes + mostBytes;
      before.sinceMs = Date.now();
      failed(error);
    }
  }

  function tidy(): void {
    const { at } = file;
    if (at === undefined || limitBytes === 0) return;
    try {
      const before = readdirSync(dirname(at))
        .filter((name) => name.startsWith(basename(at)) && TURNED.test(name.slice(basename(at).length)))
        .toSorted()
        .toReversed()
        .map((name) => join(dirname(at), name));
      let left = limitBytes - mostBytes;
      for (const old of before) {
        const { size, mtimeMs } = statSync(old);
        left -= size;
        if (left < 0 || mtimeMs < Date.now() - keepMs) rmSync(old);
      }
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
    reopen() {
      const next = open();
      closeSync(file.fd);
      file = next;
      torn = false;
      tidy();
    },
    close: () => closeSync(file.fd),
  };
}
