import { closeSync, existsSync, fstatSync, read, readSync } from "node:fs";
import { join } from "node:path";
import { codeOf } from "../../os/errno.ts";
import { JobError } from "../model/errors.ts";
import type { OutputExtent } from "../model/job.ts";
import { openFile } from "../system/file.ts";
import { type Bytes, framedOutput, type LocalBytes, openIndex } from "./seekable.ts";

/*
 * The output log that a job's supervisor writes; src/supervisor/log.c has the format. Readers share nothing with the
 * writer but the files, and nothing with each other.
 */

export type Source = "stdout" | "stderr";

export const HEADER_BYTES = 64;
export const RECORD_BYTES = 16;
/** The position of the field `first_record` in the header. */
export const FIRST_RECORD_AT = 16;
const BLOCK_RECORDS = 256;
/** The most pieces that `runEnd` looks at in one call, which takes a millisecond. */
const MOST_PIECES = 4096;
/** A piece is what one source wrote in a millisecond: an index that tells of more is damaged. */
const MOST_PIECE_BYTES = 2 ** 30;
/** A record that was written while it was looked for is looked for again. */
const TRIES = 8;
const MAGIC = "jobslog1";
const SOURCES: readonly (Source | undefined)[] = [undefined, "stdout", "stderr"];

interface Header {
  readonly first: number;
  readonly firstRecord: number;
  readonly dropped: number;
  readonly gapEnd: number;
  /** Once exec has happened. */
  readonly started?: {
    readonly pid: number;
    readonly supervisor: number;
    readonly at: Date;
    /** The same, in ms of CLOCK_MONOTONIC. */
    readonly ms: number;
  };
}

/** Bytes of one source and time, with `start` at or before what was asked for and `end` after it; `source` is absent for a gap. */
interface Piece {
  readonly source: Source | undefined;
  readonly timeMs: number;
  readonly start: number;
  readonly end: number;
}

/** An open output log. */
export interface Log {
  readonly index: LocalBytes;
  readonly output: Bytes;
  header(): Header;
  extent(): OutputExtent;
  /** The piece that holds `offset`. Ask for the size before, not after. Throws JobError `data-loss` where the index tells none. */
  pieceAt(offset: number): Piece;
  /** The end of the run of its source, `most` at most; that of a piece in it, where the run is of thousands. */
  runEnd(offset: number, most: number, times: boolean): number;
}

/** No byte of output is at this offset or above. */
export type End = () => number;

const endless: End = () => Infinity;

/** Opens the log in a job's directory, in either form. Throws ENOENT when it is not there. */
export function openLog(directory: string, end = endless): Log & Disposable {
  try {
    return openPlainLog(directory, end);
  } catch (error) {
    // The plain files go when both others are there.
    if (codeOf(error) !== "ENOENT" || !existsSync(join(directory, "output.zst"))) throw error;
    return openCompressedLog(directory, end);
  }
}

export function openPlainLog(directory: string, end = endless): Log & Disposable {
  const [output, index] = openBoth(directory, "output", "index");
  return {
    ...logOf(
      fileBytes(index),
      { size: () => fstatSync(output).size, read: (buffer, offset) => readAt(output, buffer, offset) },
      end,
    ),
    [Symbol.dispose]() {
      closeSync(output);
      closeSync(index);
    },
  };
}

export function openCompressedLog(directory: string, end = endless): Log & Disposable {
  const [output, index] = openBoth(directory, "output.zst", "index.zst");
  try {
    return compressedLogOf(
      fileBytes(index),
      { size: () => fstatSync(output).size, read: (...where) => readAt(output, ...where) },
      () => {
        closeSync(output);
        closeSync(index);
      },
      end,
    );
  } catch (error) {
    closeSync(output);
    closeSync(index);
    throw error;
  }
}

function openBoth(directory: string, ...[first, second]: readonly [string, string]): [number, number] {
  const output = openFile(join(directory, first));
  try {
    return [output, openFile(join(directory, second))];
  } catch (error) {
    closeSync(output);
    throw error;
  }
}

/** An open file, whole. */
export function fileBytes(fd: number): LocalBytes {
  return {
    size: () => fstatSync(fd).size,
    read: (buffer, offset) => readSync(fd, buffer, 0, buffer.length, offset),
  };
}

const SYNC_READ_BYTES = 16 * 1024; // below it, a copy from the page cache costs less than a trip to another thread

function readAt(fd: number, buffer: Buffer, offset: number): number | Promise<number> {
  if (buffer.length <= SYNC_READ_BYTES) return readSync(fd, buffer, 0, buffer.length, offset);
  return new Promise((resolve, reject) => {
    read(fd, buffer, 0, buffer.length, offset, (error, count) => (error ? reject(error) : resolve(count)));
  });
}

/** A log of index.zst and output.zst; `close` is called when it is disposed of. */
export function compressedLogOf(
  indexFile: LocalBytes,
  file: Bytes,
  close: () => void,
  end = endless,
): Log & Disposable {
  const { index, frames } = openIndex(indexFile);
  const output = framedOutput(frames, file);
  return {
    ...logOf(index, output, end),
    [Symbol.dispose]() {
      output[Symbol.dispose]();
      close();
    },
  };
}

/** Reads the header into `scratch`. Throws JobError `data-loss` when it is damaged. */
function headerIn(index: LocalBytes, scratch: Buffer): Header {
  const there = index.read(scratch, 0);
  if (there < HEADER_BYTES || scratch.toString("latin1", 0, 8) !== MAGIC) throw damaged();
  const [first = 0, firstRecord = 0, dropped = 0, gapEnd = 0] = [8, 16, 24, 32].map((i) =>
    Number(scratch.readBigUInt64LE(i)),
  );
  const startedMs = Number(scratch.readBigInt64LE(40)) / 1e6;
  const ms = Number(scratch.readBigInt64LE(56)) / 1e6;
  const pids = { pid: scratch.readInt32LE(48), supervisor: scratch.readInt32LE(52) };
  const started = { ...pids, at: new Date(startedMs), ms };
  // No count of bytes or records is above what a file can have.
  if (![first, firstRecord, dropped, gapEnd].every(Number.isSafeInteger)) throw damaged();
  return { first, firstRecord, dropped, gapEnd, ...(startedMs > 0 && { started }) };
}

interface Records {
  /** Returns the offset that record `n` holds from; Infinity past the last record. */
  readonly offsetOf: (n: number) => number;
  /** Returns the piece of record `n`, which ends at `end`. Throws JobError `data-loss` when the record is damaged. */
  readonly pieceOf: (n: number, end: number) => Piece;
}

/** Reads records by their numbers, a block of them at a time. */
function recordsIn(index: LocalBytes): Records {
  const block = Buffer.alloc(BLOCK_RECORDS * RECORD_BYTES);
  let blockFirst = 0;
  let blockCount = 0;

  /** Returns the position of record `n` in `block`, which is read again when it lacks the record; -1 past the last record. */
  function record(n: number): number {
    if (n < blockFirst || n >= blockFirst + blockCount) {
      blockFirst = Math.max(0, n - 1);
      blockCount = Math.floor(index.read(block, HEADER_BYTES + blockFirst * RECORD_BYTES) / RECORD_BYTES);
    }
    return n < blockFirst + blockCount ? (n - blockFirst) * RECORD_BYTES : -1;
  }

  function offsetOf(n: number): number {
    const position = record(n);
    return position < 0 ? Infinity : block.readUIntLE(position, 6);
  }

  function pieceOf(n: number, end: number): Piece {
    const position = record(n);
    const kind = block.readUInt16LE(position + 6);
    const [start, timeMs] = [block.readUIntLE(position, 6), block.readUIntLE(position + 8, 6)];
    if (kind >= SOURCES.length || timeMs === 0 || (kind > 0 && end - start > MOST_PIECE_BYTES)) throw damaged();
    return { source: SOURCES[kind], timeMs, start, end };
  }

  return { offsetOf, pieceOf };
}

/** Opens a log of an index and the output that it is of. */
// oxlint-disable-next-line max-lines-per-function -- one short method for each question about a log, over one header
export function logOf(index: LocalBytes, bytes: Bytes, end = endless): Log {
  const output: Bytes = { ...bytes, size: () => Math.min(bytes.size(), end()) };
  const scratch = Buffer.alloc(HEADER_BYTES);
  const { offsetOf, pieceOf } = recordsIn(index);
  const header = (): Header => headerIn(index, scratch);
  /** The record of the last call. */
  let at = -1;

  /** The last record at or before `offset`; the first that holds, where all are behind it. */
  function search(offset: number): number {
    let low = header().firstRecord;
    let high = Math.floor((index.size() - HEADER_BYTES) / RECORD_BYTES);
    if (low > 0 && low >= high) throw damaged();
    while (high - low > 1) {
      const middle = Math.floor((low + high) / 2); // >>> has 32 bits
      if (offsetOf(middle) <= offset) low = middle;
      else high = middle;
    }
    return low;
  }

  /** The same, from the record of the last call on where it is near. */
  function seek(offset: number): number {
    if (at < 0 || offsetOf(at) > offset) return search(offset);
    for (let n = at; n < at + BLOCK_RECORDS; n++) if (offsetOf(n + 1) > offset) return n;
    return search(offset);
  }

  /** Returns the piece at an offset that is behind the last record; undefined when a record was written meanwhile. */
  function behindRecords(offset: number, start: number): Piece | undefined {
    const end = output.size();
    // Bytes that are being dropped now are in no record yet: they lie between the file's end and the log's.
    if (offset >= end) return { source: undefined, timeMs: 0, start: end, end: Infinity };
    // A record is written before its bytes, so bytes without one have it by now.
    if (start === Infinity || offsetOf(at + 1) <= offset) return undefined;
    return pieceOf(at, offsetOf(at + 1) === Infinity ? end : offsetOf(at + 1));
  }

  function pieceAt(offset: number): Piece {
    for (let tries = 0; tries < TRIES; tries++) {
      at = seek(offset);
      const start = offsetOf(at);
      const end = offsetOf(at + 1);
      if (end === Infinity && (start <= offset || start === Infinity)) {
        const piece = behindRecords(offset, start);
        if (piece) return piece;
      } else if (start <= offset && offset < end) return pieceOf(at, end);
      // Bytes that were let go meanwhile are in no record any more.
      const { first } = header();
      if (offset < first) return { source: undefined, timeMs: 0, start: offset, end: first };
      at = -1;
    }
    throw damaged();
  }

  return {
    index,
    output,
    header,
    extent() {
      const { first, dropped, gapEnd } = header();
      return { size: Math.max(output.size(), gapEnd), first, dropped };
    },
    pieceAt,
    runEnd: (...where) => runEnd(pieceAt, ...where),
  };
}

function runEnd(pieceAt: Log["pieceAt"], offset: number, most: number, times: boolean): number {
  const { source, timeMs, end } = pieceAt(offset);
  let reached = end;
  for (let pieces = 1; reached < most && pieces < MOST_PIECES; pieces++) {
    const next = pieceAt(reached);
    if (next.source !== source || (times && next.timeMs !== timeMs)) break;
    reached = next.end;
  }
  return Math.min(reached, most);
}

function damaged(): JobError {
  return new JobError("data-loss", "the index of the output is damaged");
}

/** The pids and the times of a job's exec; undefined before the exec. Throws when the log cannot be read. */
export function startOf(entry: { readonly directory: string }): ReturnType<Log["header"]>["started"] {
  try {
    using output = openLog(entry.directory);
    return output.header().started;
  } catch (error) {
    if (codeOf(error) === "ENOENT") return undefined;
    throw error;
  }
}
