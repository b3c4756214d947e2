import {
  damaged,
  decodeFooter,
  decodeFrame,
  decompress,
  decompressSync,
  ENTRY_BYTES,
  FOOTER_BYTES,
  type Frame,
  INDEX_FRAME_BYTES,
  release,
  SKIPPABLE_BYTES,
} from "./frames.ts";

/* Reads compressed logs; frames.ts has the format. */

/** How many readers hold a frame each. */
const HOLDERS = 64;

/** Bytes wherever they are. */
export interface Bytes {
  size(): number;
  /** Fills `buffer` from `offset` on, as far as there is something. */
  read(buffer: Buffer, offset: number): number | Promise<number>;
}

/** Bytes that are here. */
export interface LocalBytes extends Bytes {
  read(buffer: Buffer, offset: number): number;
}

/** The frames of a file, `count` of them, and as the last entry their end. */
export interface Table {
  readonly count: number;
  /** Throws JobError `data-loss` when the entry is damaged, or is none. */
  at(n: number): Frame;
}

type BytesAt = (length: number, position: number) => Buffer;

function tableAt(bytesAt: BytesAt, position: number, entries: number): Table {
  return {
    count: entries - 1,
    at(n) {
      if (n < 0 || n >= entries) throw damaged("the compressed log lacks a frame");
      return decodeFrame(bytesAt(ENTRY_BYTES, position + n * ENTRY_BYTES));
    },
  };
}

/** Reads index.zst. Throws JobError `data-loss` when it is none, and so do the reads of what it holds. */
export function openIndex(file: LocalBytes): { readonly index: LocalBytes; readonly frames: Table } {
  const size = file.size();
  const bytesAt: BytesAt = (length, position) => {
    const bytes = Buffer.alloc(length);
    if (position < 0 || file.read(bytes, position) < length) throw damaged("the compressed index is cut short");
    return bytes;
  };
  const { outputs, indexes } = decodeFooter(bytesAt(FOOTER_BYTES, size - FOOTER_BYTES));
  const own = tableAt(bytesAt, size - FOOTER_BYTES - indexes * ENTRY_BYTES, indexes);
  const length = own.at(own.count).offset;

  let held: { readonly n: number; readonly bytes: Buffer } | undefined;
  function frame(n: number): Buffer {
    if (held?.n === n) return held.bytes;
    const found = own.at(n);
    const bytes = decompressSync(bytesAt(found.compressed, found.position), found);
    held = { n, bytes };
    return bytes;
  }
  // Readers ask for the header again and again.
  const head = length > 0 ? Buffer.from(frame(0).subarray(0, 64)) : Buffer.alloc(0);
  return {
    index: {
      size: () => length,
      read(buffer, offset) {
        if (offset === 0 && buffer.length <= head.length) return head.copy(buffer);
        let done = 0;
        while (done < buffer.length && offset + done < length) {
          const n = Math.floor((offset + done) / INDEX_FRAME_BYTES);
          const copied = frame(n).copy(buffer, done, offset + done - n * INDEX_FRAME_BYTES);
          if (copied === 0) throw damaged("the compressed index lacks what its table tells of");
          done += copied;
        }
        return done;
      },
    },
    frames: tableAt(bytesAt, SKIPPABLE_BYTES, outputs),
  };
}

interface Holder {
  held?: { readonly n: number; readonly bytes: Promise<Buffer> } | undefined;
}
/** The readers that hold a frame, the one that asked last at the end. Their number is bounded, because there may be thousands. */
const holders = new Set<Holder>();

function hold(holder: Holder): void {
  holders.delete(holder);
  holders.add(holder);
  for (const other of holders) {
    if (holders.size <= HOLDERS) return;
    holders.delete(other);
    other.held = undefined;
  }
}

/** Returns a search for the last frame that begins at or before an offset: mostly that of the last call, or the next. */
function searchIn(frames: Table): (offset: number) => number {
  let last = 0;
  return (offset) => {
    const holds = (n: number): boolean =>
      n < frames.count && frames.at(n).offset <= offset && offset < frames.at(n + 1).offset;
    if (holds(last)) return last;
    if (holds(last + 1)) return ++last;
    let low = 0;
    let high = frames.count;
    while (high - low > 1) {
      const middle = Math.floor((low + high) / 2);
      if (frames.at(middle).offset <= offset) low = middle;
      else high = middle;
    }
    return (last = low);
  };
}

/** The output that the frames of `file` hold, at its offsets. Reading what is in no frame throws JobError `data-loss`. */
export function framedOutput(frames: Table, file: Bytes): Bytes & Disposable {
  const holder: Holder = {};
  const end = frames.at(frames.count).offset;
  const find = searchIn(frames);

  async function load(frame: Frame): Promise<Buffer> {
    const { position, compressed } = frame;
    const bytes = Buffer.allocUnsafeSlow(compressed);
    if ((await file.read(bytes, position)) < compressed) throw damaged("the compressed output is cut short");
    const output = await decompress(bytes, frame);
    release(bytes);
    return output;
  }

  function frameBytes(n: number): Promise<Buffer> {
    hold(holder);
    if (holder.held?.n !== n) {
      holder.held?.bytes.then(release, () => {}); // one read at a time: nobody copies from it
      const bytes = load(frames.at(n));
      holder.held = { n, bytes };
      bytes.catch(() => (holder.held = undefined)); // the next one tries again
    }
    return holder.held.bytes;
  }

  return {
    size: () => end,
    async read(buffer, from) {
      const to = Math.min(from + buffer.length, end);
      for (let at = from; at < to;) {
        const n = find(at);
        const { offset, length } = frames.at(n);
        const inFrame = at - offset;
        if (inFrame < 0 || inFrame >= length) throw damaged("the compressed output lacks what its index tells of");
        at += (await frameBytes(n)).copy(buffer, at - from, inFrame);
      }
      return Math.max(0, to - from);
    },
    [Symbol.dispose]() {
      holders.delete(holder);
      holder.held = undefined;
    },
  };
}
