import { closeSync, fstatSync, openSync, read, readSync } from "node:fs";
import { join } from "node:path";
import type { OutputExtent } from "./job.ts";

/*
 * Readers of the output log that a job's supervisor writes; src/supervisor/log.c has the format. Readers share
 * nothing with the writer but the files, and nothing with each other.
 */

export type Source = "stdout" | "stderr";

/** Where a stream begins; the first byte that is kept when absent. */
export type Position =
  | { readonly kind: "offset"; readonly offset: number }
  | { readonly kind: "tail-bytes"; readonly count: number }
  | { readonly kind: "tail-lines"; readonly count: number };

export interface StreamOptions {
  readonly position?: Position;
  /** Go on until the job has ended, instead of until the last byte there is now. */
  readonly follow?: boolean;
  /** Both when absent. */
  readonly source?: Source;
  /** A new chunk wherever the time changes, so that every byte's is known to a millisecond. */
  readonly times?: boolean;
  /** Ends the stream. */
  readonly signal?: AbortSignal;
}

/** Bytes of one source, 256 KiB at most. `bytes` is valid until the next one is asked for. */
export interface Chunk {
  readonly kind: "chunk";
  readonly source: Source;
  /** Of the first byte, ms since the epoch. */
  readonly timeMs: number;
  readonly offset: number;
  readonly bytes: Buffer;
}

/** Bytes from `offset` on that were not kept. */
export interface Gap {
  readonly kind: "gap";
  readonly offset: number;
  readonly length: number;
}

/** What a reader must know of the job while it runs. */
export interface Live {
  /** Nothing will be written any more. */
  ended(): boolean;
  /** Calls `wake` whenever there may be more, or the end, until disposed. */
  subscribe(wake: () => void): Disposable;
}

const CHUNK_BYTES = 256 * 1024;
const SYNC_READ_BYTES = 16 * 1024; // below it, a copy from the page cache costs less than a trip to another thread
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
  readonly started?: { readonly pid: number; readonly supervisor: number; readonly at: Date };
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
    const started = { pid: scratch.readInt32LE(48), supervisor: scratch.readInt32LE(52), at: new Date(startedMs) };
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

function readAt(fd: number, buffer: Buffer, offset: number): number | Promise<number> {
  if (buffer.length <= SYNC_READ_BYTES) return readSync(fd, buffer, 0, buffer.length, offset);
  return new Promise((resolve, reject) => {
    read(fd, buffer, 0, buffer.length, offset, (error, count) => (error ? reject(error) : resolve(count)));
  });
}

/** Where a stream of the log's last `count` bytes or lines of `source` begins. */
async function tailOffset(
  log: Log,
  { size, first }: OutputExtent,
  position: Position,
  source: Source | undefined,
): Promise<number> {
  if (position.kind === "offset") return position.offset;
  let left = position.count;
  let last = true;
  if (left <= 0) return size;
  for (let high = size; high > first;) {
    const low = Math.max(first, high - CHUNK_BYTES);
    const runs: { from: number; to: number }[] = [];
    for (let from = low; from < high;) {
      const to = log.runEnd(from, high, false);
      const piece = log.pieceAt(from);
      if (piece.source !== undefined && (source ?? piece.source) === piece.source) runs.push({ from, to });
      from = to;
    }
    const bytes = Buffer.allocUnsafeSlow(high - low);
    if (position.kind === "tail-lines") await readAt(log.output, bytes, low);
    for (const { from, to } of runs.toReversed()) {
      if (position.kind === "tail-bytes") {
        if (left <= to - from) return to - left;
        left -= to - from;
        continue;
      }
      for (let i = to - 1; i >= from; i--) {
        // The newline that ends the last line begins no other.
        if (bytes[i - low] === 0x0a && !last && --left === 0) return i + 1;
        last = false;
      }
    }
    high = low;
  }
  return first;
}

interface Ahead {
  readonly offset: number;
  readonly end: number;
  readonly source: Source;
  readonly timeMs: number;
  readonly bytes: Buffer;
  readonly count: Promise<number> | number;
}

/**
 * Reads a log from a position: chunks and gaps in order of offset, each byte once. Returns the offset to resume from.
 * Memory: two buffers of 256 KiB while there is something to read, none while waiting.
 */
export async function* readOutput(log: Log, live: Live, options: StreamOptions): AsyncGenerator<Chunk | Gap, number> {
  const { follow = false, source, times = false, signal } = options;
  let woken = false;
  let wake = (): void => {};
  const notify = (): void => {
    woken = true;
    wake();
  };
  using _subscription = follow ? live.subscribe(notify) : undefined;
  signal?.addEventListener("abort", notify);
  const extent = log.extent();
  let offset = options.position ? await tailOffset(log, extent, options.position, source) : extent.first;
  let buffers: [Buffer, Buffer] | undefined;
  let ahead: Ahead | undefined;

  /** Begins to read what follows `from`; undefined where that is a gap, unwanted, or not there. */
  function readAhead(from: number, size: number): Ahead | undefined {
    if (from >= size) return undefined;
    const { source: found, timeMs } = log.pieceAt(from);
    if (found === undefined || (source ?? found) !== found) return undefined;
    const end = log.runEnd(from, Math.min(size, from + CHUNK_BYTES), times);
    buffers ??= [Buffer.allocUnsafeSlow(CHUNK_BYTES), Buffer.allocUnsafeSlow(CHUNK_BYTES)];
    buffers.reverse();
    const bytes = buffers[0].subarray(0, end - from);
    return { offset: from, end, source: found, timeMs, bytes, count: readAt(log.output, bytes, from) };
  }

  try {
    while (!signal?.aborted) {
      woken = false;
      const ended = live.ended(); // before the size: what is written after is the next turn's
      const size = follow ? log.extent().size : extent.size;
      while (offset < size && !signal?.aborted) {
        ahead ??= readAhead(offset, size);
        const taken = ahead;
        ahead = undefined;
        if (taken) await taken.count;
        const { first } = log.header(); // after reading: what was let go meanwhile reads as zeros
        if (offset < first) {
          yield { kind: "gap", offset, length: first - offset };
          offset = first;
        } else if (taken) {
          const count = await taken.count;
          if (count < taken.bytes.length)
            throw new Error(`the output log is shorter than it was (at ${offset + count})`);
          offset = taken.end;
          ahead = readAhead(offset, size);
          yield { kind: "chunk", source: taken.source, timeMs: taken.timeMs, offset: taken.offset, bytes: taken.bytes };
        } else {
          const end = log.runEnd(offset, size, false);
          if (log.pieceAt(offset).source === undefined) yield { kind: "gap", offset, length: end - offset };
          offset = end;
        }
      }
      if (!follow || ended || signal?.aborted) break;
      if (woken) continue;
      buffers = undefined;
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
    return offset;
  } finally {
    signal?.removeEventListener("abort", notify);
    await ahead?.count; // the log must not be closed under a read
  }
}
