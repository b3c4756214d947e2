import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { join } from "node:path";
import type { OutputExtent } from "./job.ts";

/*
 * The output log that a job's supervisor writes; src/supervisor/log.c has the format. Readers share nothing with the
 * writer but the files, and nothing with each other.
 */

export type Source = "stdout" | "stderr";

const HEADER_BYTES = 64;
const RECORD_BYTES = 16;
const BLOCK_RECORDS = 256;
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
    /** Of CLOCK_MONOTONIC; absent in logs of before there was this. */
    readonly ms?: number;
  };
}

/** Bytes of one source and time; `source` is absent for a gap. */
interface Piece {
  readonly source: Source | undefined;
  readonly timeMs: number;
  readonly end: number;
}

/** An open output log. */
export interface Log extends Disposable {
  readonly output: number;
  header(): Header;
  extent(): OutputExtent;
  /** The piece that holds `offset`, and the end of the run of its source. Ask for the size before, not after. */
  pieceAt(offset: number): Piece;
  runEnd(offset: number, most: number, times: boolean): number;
}

/** Opens the log in a job's directory. Throws ENOENT when it is not there. */
export function openLog(directory: string): Log {
  const output = openSync(join(directory, "output"), "r");
  let index: number;
  try {
    index = openSync(join(directory, "index"), "r");
  } catch (error) {
    closeSync(output);
    throw error;
  }
  const scratch = Buffer.alloc(HEADER_BYTES);
  const block = Buffer.alloc(BLOCK_RECORDS * RECORD_BYTES);
  let blockFirst = 0;
  let blockCount = 0;
  let at = -1;

  function header(): Header {
    readSync(index, scratch, 0, HEADER_BYTES, 0);
    if (scratch.toString("latin1", 0, 8) !== MAGIC)
      throw new Error(`${join(directory, "index")} is no index of an output log`);
    const [first = 0, firstRecord = 0, dropped = 0, gapEnd = 0] = [8, 16, 24, 32].map((i) =>
      Number(scratch.readBigUInt64LE(i)),
    );
    const startedMs = Number(scratch.readBigInt64LE(40)) / 1e6;
    const ms = Number(scratch.readBigInt64LE(56)) / 1e6;
    const pids = { pid: scratch.readInt32LE(48), supervisor: scratch.readInt32LE(52) };
    const started = { ...pids, at: new Date(startedMs), ...(ms > 0 && { ms }) };
    return { first, firstRecord, dropped, gapEnd, ...(startedMs > 0 && { started }) };
  }

  function extent(): OutputExtent {
    const { first, dropped, gapEnd } = header();
    return { size: Math.max(fstatSync(output).size, gapEnd), first, dropped };
  }

  /** Position of record `n` in `block`, which is read when it is not there; -1 past the last. */
  function record(n: number): number {
    if (n < blockFirst || n >= blockFirst + blockCount) {
      blockFirst = n;
      blockCount = Math.floor(readSync(index, block, 0, block.length, HEADER_BYTES + n * RECORD_BYTES) / RECORD_BYTES);
      if (blockCount === 0) return -1;
    }
    return (n - blockFirst) * RECORD_BYTES;
  }

  function offsetOf(n: number): number {
    const position = record(n);
    return position < 0 ? Infinity : block.readUIntLE(position, 6);
  }

  /** The last record at or before `offset`. */
  function search(offset: number): number {
    let low = header().firstRecord;
    let high = Math.floor((fstatSync(index).size - HEADER_BYTES) / RECORD_BYTES);
    while (high - low > 1) {
      const middle = (low + high) >>> 1;
      if (offsetOf(middle) <= offset) low = middle;
      else high = middle;
    }
    return low;
  }

  function pieceAt(offset: number): Piece {
    if (at < 0 || offsetOf(at) > offset) at = search(offset);
    while (offsetOf(at + 1) <= offset) at++;
    let end = offsetOf(at + 1);
    // Bytes that are being dropped now are in no record yet: they lie between the file's end and the log's.
    if (end === Infinity) end = fstatSync(output).size;
    if (offset >= end) return { source: undefined, timeMs: 0, end: Infinity };
    const position = record(at);
    if (position < 0) return { source: undefined, timeMs: 0, end };
    return { source: SOURCES[block.readUInt16LE(position + 6)], timeMs: block.readUIntLE(position + 8, 6), end };
  }

  return {
    output,
    header,
    extent,
    pieceAt,
    runEnd(offset, most, times) {
      const { source, timeMs, end } = pieceAt(offset);
      let reached = end;
      while (reached < most) {
        const next = pieceAt(reached);
        if (next.source !== source || (times && next.timeMs !== timeMs)) break;
        reached = next.end;
      }
      return Math.min(reached, most);
    },
    [Symbol.dispose]() {
      closeSync(output);
      closeSync(index);
    },
  };
}
