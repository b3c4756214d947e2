import { turns } from "../../os/turn.ts";
import { JobError } from "../model/errors.ts";
import type { OutputExtent } from "../model/job.ts";
import type { Log, Source } from "./log.ts";

/** The place that a stream begins at. Without one a stream begins at the first byte that was kept. */
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
  /** The time of the first byte, in ms since the epoch. */
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

/** The job of a log, as a reader needs to know it while the job runs. */
export interface Live {
  /** Returns true when nothing will be written any more. */
  ended(): boolean;
  /** Calls `wake` whenever there may be more, or the end, until disposed. */
  subscribe(wake: () => void): Disposable;
}

const CHUNK_BYTES = 256 * 1024;
/** The smallest chunk, which readers get when there are very many. */
const LEAST_CHUNK_BYTES = 16 * 1024;
/** The most that the buffers of all readers take before their chunks become smaller. */
const BUFFERS_BYTES = 32 * 2 ** 20;

/** How many readers have buffers. */
let reading = 0;

/** Returns how many bytes a reader reads at a time: fewer, the more readers there are. */
function share(): number {
  let bytes = CHUNK_BYTES;
  while (bytes > LEAST_CHUNK_BYTES && reading * 2 * bytes > BUFFERS_BYTES) bytes /= 2;
  return bytes;
}

/** Returns the offset at which a stream of the log's last `count` bytes or lines of `source` begins. */
async function tailOffset(
  log: Log,
  { size, first }: OutputExtent,
  position: Position,
  source: Source | undefined,
): Promise<number> {
  if (position.kind === "offset") return position.offset;
  const rest = turns();
  let left = position.count;
  let last = true;
  if (left <= 0) return size;
  for (let high = Math.min(size, log.output.size()); high > first;) {
    await rest();
    // A gap may be terabytes long: it is passed in one step.
    const above = log.pieceAt(high - 1);
    if (above.source === undefined) {
      high = Math.min(high - 1, above.start);
      continue;
    }
    const low = Math.max(first, high - CHUNK_BYTES);
    const runs: { from: number; to: number }[] = [];
    for (let from = low; from < high;) {
      const piece = log.pieceAt(from);
      const to = log.runEnd(from, high, false);
      if (piece.source !== undefined && (source ?? piece.source) === piece.source) runs.push({ from, to });
      from = to;
      await rest();
    }
    const bytes = position.kind === "tail-lines" ? await windowOf(log, low, high, runs) : Buffer.alloc(0);
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

/** Reads the bytes from `low` to `high`. Bytes outside of all runs are undefined: a gap has none. */
async function windowOf(
  log: Log,
  low: number,
  high: number,
  runs: readonly { readonly from: number; readonly to: number }[],
): Promise<Buffer> {
  const bytes = Buffer.allocUnsafeSlow(high - low);
  const rest = turns();
  for (let i = 0; i < runs.length;) {
    const from = runs[i]?.from ?? high;
    let to = runs[i++]?.to ?? high;
    for (; runs[i]?.from === to; i++) to = runs[i]?.to ?? to;
    await readWhole(log, bytes.subarray(from - low, to - low), from);
    await rest();
  }
  return bytes;
}

async function readWhole(log: Log, bytes: Buffer, offset: number): Promise<void> {
  checkCount(await log.output.read(bytes, offset), bytes, offset);
}

function checkCount(count: number, bytes: Buffer, offset: number): void {
  if (count < bytes.length)
    throw new JobError("data-loss", `the output log is shorter than it was (at ${offset + count})`);
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
 * Memory: two buffers of 256 KiB while there is something to read, smaller ones with more than 64 readers, none while
 * waiting.
 */
// oxlint-disable-next-line max-lines-per-function -- a generator yields from one function; its buffers and its read ahead are one state
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
  const rest = turns();
  let { first } = extent;
  let offset = options.position ? await tailOffset(log, extent, options.position, source) : extent.first;
  let buffers: [Buffer, Buffer] | undefined;
  let ahead: Ahead | undefined;

  function letGo(): void {
    if (buffers) reading--;
    buffers = undefined;
  }

  /** Begins to read what follows `from`; undefined where that is a gap, unwanted, or not there. */
  function readAhead(from: number, size: number): Ahead | undefined {
    if (from >= size || from < first) return undefined;
    const { source: found, timeMs } = log.pieceAt(from);
    if (found === undefined || (source ?? found) !== found) return undefined;
    if (!buffers) reading++;
    const most = share();
    const end = log.runEnd(from, Math.min(size, from + most), times);
    if (buffers?.[0].length !== most) buffers = [Buffer.allocUnsafeSlow(most), Buffer.allocUnsafeSlow(most)];
    buffers.reverse();
    const bytes = buffers[0].subarray(0, end - from);
    const count = log.output.read(bytes, from);
    // A read may fail before anybody waits for it.
    if (typeof count !== "number") count.catch(() => {});
    return { offset: from, end, source: found, timeMs, bytes, count };
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
        ({ first } = log.header()); // after reading: what was let go meanwhile reads as zeros
        if (offset < first) {
          yield { kind: "gap", offset, length: first - offset };
          offset = first;
        } else if (taken) {
          checkCount(await taken.count, taken.bytes, offset);
          offset = taken.end;
          ahead = readAhead(offset, size);
          yield { kind: "chunk", source: taken.source, timeMs: taken.timeMs, offset: taken.offset, bytes: taken.bytes };
        } else {
          const gap = log.pieceAt(offset).source === undefined;
          const end = log.runEnd(offset, size, false);
          if (gap) yield { kind: "gap", offset, length: end - offset };
          offset = end;
          await rest();
        }
      }
      if (!follow || ended || signal?.aborted) break;
      if (woken) continue;
      letGo();
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
    return offset;
  } finally {
    signal?.removeEventListener("abort", notify);
    letGo();
    await Promise.allSettled([ahead?.count]); // the log must not be closed under a read
  }
}
