import { promisify } from "node:util";
import { constants, createZstdCompress, zstdDecompress, zstdDecompressSync } from "node:zlib";
import { reasonOf } from "../../os/errno.ts";
import { JobError } from "../model/errors.ts";

/*
 * Compressed logs: zstd's seekable format (facebook/zstd, contrib/seekable_format), which is frames that stand for
 * themselves and, in a skippable frame at the end, how long each is. `zstd -d` reads it as any other file.
 *
 *   output.zst: frames of up to 256 KiB of output each. What was not kept is in none, and none goes across it.
 *   index.zst:  a skippable frame with where each frame of output.zst is, and where it belongs: entries of 24 bytes,
 *               little-endian: offset in the output, position in the file (u64 each), bytes of output, bytes in the
 *               file (u32 each); the last is the end of both. Then frames of the index, with the first record that
 *               holds as its record 0.
 */

/** Of output in a frame: one chunk of a stream. */
export const FRAME_BYTES = 256 * 1024;
/** Of the index, which is read in small pieces and waited for. */
export const INDEX_FRAME_BYTES = 64 * 1024;
export const ENTRY_BYTES = 24;
export const SKIPPABLE_BYTES = 8;
/** What skippable frames are told by; the first is a seek table's. */
const SEEK_TABLE = 0x184d2a5e;
const FRAME_TABLE = 0x184d2a50;
const SEEKABLE = 0x8f92eab1;
const FOOTER_BYTES = 9;
const SIZES_BYTES = 8;
/** Of incompressible bytes a frame is a little longer than they are: ZSTD_compressBound. */
const BOUND_BYTES = 2048;
/** The least buffer that node:zlib takes. */
const LEAST_CHUNK = 64;
/** Readers that hold a frame each. */
const HOLDERS = 64;
/** An index of more would be one of 64 GiB: four thousand million pieces of output. */
const MOST_INDEX_FRAMES = 2 ** 20;

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

const decompressAsync = promisify(zstdDecompress);

/** A window of one frame is all that a frame can use; a checksum, so that what a disk has damaged is not taken for output. */
const PARAMETERS = { [constants.ZSTD_c_windowLog]: Math.log2(FRAME_BYTES), [constants.ZSTD_c_checksumFlag]: 1 };
/** A damaged frame can ask for a window of 128 MiB. */
const WINDOW = { [constants.ZSTD_d_windowLogMax]: Math.log2(FRAME_BYTES) };

/** Pieces of one frame. They are of one buffer, which zlib's own promise would copy. */
export function compressFrame(bytes: Buffer): Promise<Buffer[]> {
  return new Promise((resolve, reject) => {
    const pieces: Buffer[] = [];
    const stream = createZstdCompress({ chunkSize: bytes.length + BOUND_BYTES, params: PARAMETERS });
    stream.on("data", (piece: Buffer) => pieces.push(piece));
    stream.on("end", () => resolve(pieces));
    stream.on("error", reject);
    stream.end(bytes);
  });
}

/**
 * Gives memory back at once: of what lies outside its heap the collector leaves some 70 MiB. What is small may be of the
 * pool that others' buffers are of.
 */
export function release({ buffer }: Buffer): void {
  if (buffer instanceof ArrayBuffer && buffer.byteLength > 2 * Buffer.poolSize) buffer.transfer(0);
}

/** A skippable frame's first bytes. */
function skippable(magic: number, bytes: number): Buffer {
  const header = Buffer.alloc(SKIPPABLE_BYTES);
  header.writeUInt32LE(magic, 0);
  header.writeUInt32LE(bytes, 4);
  return header;
}

/** In front of so many entries. */
export function frameTableHeader(entries: number): Buffer {
  return skippable(FRAME_TABLE, entries * ENTRY_BYTES);
}

/** In front of, and behind, the sizes of so many frames. */
export function seekTableEnds(frames: number): { readonly header: Buffer; readonly footer: Buffer } {
  const footer = Buffer.alloc(FOOTER_BYTES);
  footer.writeUInt32LE(frames, 0);
  footer.writeUInt32LE(SEEKABLE, 5); // behind a descriptor of 0: the table has no checksums, frames have their own
  return { header: skippable(SEEK_TABLE, frames * SIZES_BYTES + FOOTER_BYTES), footer };
}

/** A frame's entry in a seek table. */
export function sizesOf(compressed: number, length: number): Buffer {
  const sizes = Buffer.alloc(SIZES_BYTES);
  sizes.writeUInt32LE(compressed, 0);
  sizes.writeUInt32LE(length, 4);
  return sizes;
}

/** A frame of output.zst. */
export interface Frame {
  readonly offset: number;
  readonly position: number;
  readonly length: number;
  readonly compressed: number;
}

export function encodeFrame({ offset, position, length, compressed }: Frame): Buffer {
  const entry = Buffer.alloc(ENTRY_BYTES);
  entry.writeBigUInt64LE(BigInt(offset), 0);
  entry.writeBigUInt64LE(BigInt(position), 8);
  entry.writeUInt32LE(length, 16);
  entry.writeUInt32LE(compressed, 20);
  return entry;
}

export function decodeFrame(entry: Buffer): Frame {
  return {
    offset: Number(entry.readBigUInt64LE(0)),
    position: Number(entry.readBigUInt64LE(8)),
    length: entry.readUInt32LE(16),
    compressed: entry.readUInt32LE(20),
  };
}

/** The frames of output.zst, the last of which is its end. */
export interface Frames {
  readonly count: number;
  at(n: number): Frame;
}

/** Where the index's own frames are in index.zst, and how long the index is. */
interface IndexFrames {
  /** Bytes at the file's beginning, with the frame table. */
  readonly tableBytes: number;
  readonly count: number;
  readonly length: number;
  /** Frame `n` as it is in the file, and how long it is when it has been decompressed. */
  at(n: number): { readonly position: number; readonly compressed: number; readonly length: number };
}

/**
 * Reads the seek table, which is believed only where it tells of the whole file, and of frames that a daemon makes: all
 * of them full but the last. What a damaged one says allocates nothing.
 */
function indexFrames(size: number, bytesAt: (length: number, position: number) => Buffer): IndexFrames {
  const footer = bytesAt(FOOTER_BYTES, size - FOOTER_BYTES);
  const frames = footer.readUInt32LE(0);
  if (footer.readUInt32LE(5) !== SEEKABLE || frames < 1 || frames > MOST_INDEX_FRAMES) throw notSeekable();
  const end = size - FOOTER_BYTES - frames * SIZES_BYTES;
  const table = bytesAt(frames * SIZES_BYTES, end);
  const sizes = (n: number): readonly [number, number] => [
    table.readUInt32LE(n * SIZES_BYTES),
    table.readUInt32LE(n * SIZES_BYTES + 4),
  ];
  const starts = new Float64Array(frames);
  let position = 0;
  for (let n = 0; n < frames; n++) {
    const [compressed, length] = sizes(n);
    starts[n] = position;
    position += compressed;
    const full = n === frames - 1 ? length > 0 && length <= INDEX_FRAME_BYTES : length === INDEX_FRAME_BYTES;
    if (n > 0 && !(full && compressed <= INDEX_FRAME_BYTES + BOUND_BYTES)) throw notSeekable();
  }
  if (position !== end - SKIPPABLE_BYTES) throw notSeekable();
  const count = frames - 1;
  return {
    tableBytes: sizes(0)[0],
    count,
    length: count === 0 ? 0 : (count - 1) * INDEX_FRAME_BYTES + sizes(count)[1],
    at(n) {
      const [compressed, length] = sizes(n + 1);
      return { position: starts[n + 1] ?? 0, compressed, length };
    },
  };
}

/** Reads index.zst. Throws JobError `data-loss` when it is none, and so do the reads of what it holds. */
export function openIndex(file: LocalBytes): { readonly index: LocalBytes; readonly frames: Frames } {
  const size = file.size();
  const bytesAt = (length: number, position: number): Buffer => {
    if (position < 0 || position + length > size) throw notSeekable();
    const bytes = Buffer.alloc(length);
    if (file.read(bytes, position) < length) throw notSeekable();
    return bytes;
  };
  const own = indexFrames(size, bytesAt);
  const { length } = own;

  let held: { readonly n: number; readonly bytes: Buffer } | undefined;
  function frame(n: number): Buffer {
    if (held?.n === n) return held.bytes;
    if (n >= own.count) throw notSeekable();
    const { position, compressed, length: wanted } = own.at(n);
    const bytes = decompressed(bytesAt(compressed, position), wanted);
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
          done += frame(n).copy(buffer, done, offset + done - n * INDEX_FRAME_BYTES);
        }
        return done;
      },
    },
    frames: openFrames(own.tableBytes, bytesAt),
  };
}

/** The frame table, which is the first `tableBytes` of index.zst. */
function openFrames(tableBytes: number, bytesAt: (length: number, position: number) => Buffer): Frames {
  const count = (tableBytes - SKIPPABLE_BYTES) / ENTRY_BYTES;
  if (!Number.isInteger(count) || count < 1 || !bytesAt(SKIPPABLE_BYTES, 0).equals(frameTableHeader(count)))
    throw notSeekable();
  return {
    count,
    at(n) {
      if (n < 0 || n >= count) throw notSeekable();
      const found = decodeFrame(bytesAt(ENTRY_BYTES, SKIPPABLE_BYTES + n * ENTRY_BYTES));
      const { offset, position, length, compressed } = found;
      if (!Number.isSafeInteger(offset + length) || !Number.isSafeInteger(position + compressed)) throw notSeekable();
      if (length > FRAME_BYTES || compressed > FRAME_BYTES + BOUND_BYTES) throw notSeekable();
      return found;
    },
  };
}

function notSeekable(): JobError {
  return damaged("this is no index of a compressed log");
}

function damaged(message: string, cause?: unknown): JobError {
  return new JobError("data-loss", message, { cause });
}

function decompressed(frame: Buffer, length: number): Buffer {
  try {
    const bytes = zstdDecompressSync(frame, { maxOutputLength: Math.max(length, LEAST_CHUNK), params: WINDOW });
    if (bytes.length === length) return bytes;
  } catch (error) {
    throw damaged(`the compressed index is damaged: ${reasonOf(error)}`, error);
  }
  throw damaged("the compressed index is not what its table says");
}

interface Holder {
  held?: { readonly n: number; readonly bytes: Promise<Buffer> } | undefined;
}
/** Those that hold a frame, the one that asked last at the end: what thousands of readers hold is bounded. */
const holders = new Set<Holder>();

/** The output that the frames of `file` hold, at its offsets. Reading what is in no frame throws JobError `data-loss`. */
export function framedOutput(frames: Frames, file: Bytes): Bytes & Disposable {
  const holder: Holder = {};
  const end = frames.at(frames.count - 1).offset;
  let last = 0;

  /** The number of the last frame that begins at or before `offset`; the one of the last call, or the next, mostly. */
  function find(offset: number): number {
    const holds = (n: number): boolean => frames.at(n).offset <= offset && offset < frames.at(n + 1).offset;
    if (last + 1 < frames.count && holds(last)) return last;
    if (last + 2 < frames.count && holds(last + 1)) return ++last;
    let low = 0;
    let high = frames.count - 1;
    while (high - low > 1) {
      const middle = (low + high) >>> 1;
      if (frames.at(middle).offset <= offset) low = middle;
      else high = middle;
    }
    return (last = low);
  }

  async function load({ position, length, compressed }: Frame): Promise<Buffer> {
    const bytes = Buffer.allocUnsafeSlow(compressed);
    if ((await file.read(bytes, position)) < compressed) throw damaged("the compressed output is cut short");
    const options = { chunkSize: length + LEAST_CHUNK, maxOutputLength: length, params: WINDOW };
    const output = await decompressAsync(bytes, options).catch((error: unknown) => {
      throw damaged(`the compressed output is damaged: ${reasonOf(error)}`, error);
    });
    release(bytes);
    if (output.length !== length) throw damaged("the compressed output is not what its index says");
    return output;
  }

  function frameBytes(n: number): Promise<Buffer> {
    holders.delete(holder);
    holders.add(holder);
    for (const other of holders) {
      if (holders.size <= HOLDERS) break;
      holders.delete(other);
      other.held = undefined;
    }
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
