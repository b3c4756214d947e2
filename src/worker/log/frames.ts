import { promisify } from "node:util";
import { constants, crc32, createZstdCompress, zstdDecompress, zstdDecompressSync } from "node:zlib";
import { reasonOf } from "../../os/errno.ts";
import { JobError } from "../model/errors.ts";

/*
 * Compressed logs are frames of zstd, each of which can be decompressed without the others. `zstd -d` reads both files. Numbers
 * are little-endian.
 *
 *   output.zst: frames of up to 256 KiB of output each. What was not kept is in none, and none goes across it.
 *   index.zst:  a skippable frame with the table of output.zst; frames of 64 KiB of the index each, of which the first record
 *               is the first that holds; a skippable frame with the table of these frames, and a footer.
 *   table:      an entry for each frame, and one for the end, which has no length.
 *   entry:      offset in what was compressed and position in the file (48 bits each), length in what was compressed and in
 *               the file (24 bits each), the last 16 bits of the frame, CRC-32 of these 20 bytes.
 *               Earlier versions wrote 0 for the bits of the frame.
 *   footer:     how many entries the first and the second table have (32 bits each), "jobs", CRC-32 of these 12 bytes.
 */

/** The most output in a frame: one chunk of a stream. */
export const FRAME_BYTES = 256 * 1024;
/** The index in a frame, which is less because a reader waits for it and wants little of it. */
export const INDEX_FRAME_BYTES = 64 * 1024;
export const ENTRY_BYTES = 24;
export const SKIPPABLE_BYTES = 8;
export const FOOTER_BYTES = 16;
const MAGIC = "jobs";
/** ZSTD_compressBound: a frame of incompressible bytes is a little longer than they are. */
const BOUND_BYTES = 2048;
/** The least buffer that node:zlib takes. */
const LEAST_CHUNK = 64;

/** A frame in a file. */
export interface Frame {
  readonly offset: number;
  readonly position: number;
  readonly length: number;
  readonly compressed: number;
  /** The last 16 bits, of the checksum of what the frame holds: a frame of another log has others. 0 where none are noted. */
  readonly check: number;
}

export const CHECK_BYTES = 2;

/** The window of a frame is the frame. The checksum keeps what a disk has damaged from being taken for output. */
const PARAMETERS = { [constants.ZSTD_c_windowLog]: Math.log2(FRAME_BYTES), [constants.ZSTD_c_checksumFlag]: 1 };
/** A damaged frame can ask for a window of 128 MiB. */
const WINDOW = { [constants.ZSTD_d_windowLogMax]: Math.log2(FRAME_BYTES) };

/** Resolves to one frame, in pieces: they share a buffer, which zlib's own promise would copy. */
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

const decompressAsync = promisify(zstdDecompress);

/** Resolves to what a frame holds. Rejects with JobError `data-loss`. */
export async function decompress(frame: Buffer, { length, check }: Frame): Promise<Buffer> {
  checkEnd(frame, check);
  const options = { chunkSize: length + LEAST_CHUNK, maxOutputLength: length, params: WINDOW };
  const bytes = await decompressAsync(frame, options).catch((error: unknown) => {
    throw damaged(`the compressed output is damaged: ${reasonOf(error)}`, error);
  });
  return checked(bytes, length);
}

/** Returns what a frame holds. Throws JobError `data-loss`. */
export function decompressSync(frame: Buffer, { length, check }: Frame): Buffer {
  checkEnd(frame, check);
  let bytes: Buffer;
  try {
    bytes = zstdDecompressSync(frame, { maxOutputLength: Math.max(length, LEAST_CHUNK), params: WINDOW });
  } catch (error) {
    throw damaged(`the compressed index is damaged: ${reasonOf(error)}`, error);
  }
  return checked(bytes, length);
}

function checkEnd(frame: Buffer, check: number): void {
  if (check === 0) return; // not noted by an earlier version
  if (frame.length < CHECK_BYTES || frame.readUInt16LE(frame.length - CHECK_BYTES) !== check)
    throw damaged("a frame of the compressed log is not that which its table tells of");
}

function checked(bytes: Buffer, length: number): Buffer {
  if (bytes.length !== length) throw damaged("a frame of the compressed log is not what its table says");
  return bytes;
}

/**
 * Gives memory back at once: the collector leaves some 70 MiB of what lies outside its heap. Small buffers are left, because
 * they may share their memory with others.
 */
export function release({ buffer }: Buffer): void {
  if (buffer instanceof ArrayBuffer && buffer.byteLength > 2 * Buffer.poolSize) buffer.transfer(0);
}

/** Returns the first bytes of a skippable frame that holds so many. */
export function skippableHeader(bytes: number): Buffer {
  const header = Buffer.alloc(SKIPPABLE_BYTES);
  header.writeUInt32LE(0x184d2a50, 0);
  header.writeUInt32LE(bytes, 4);
  return header;
}

function sealed(bytes: Buffer): Buffer {
  const end = bytes.length - 4;
  bytes.writeUInt32LE(crc32(bytes.subarray(0, end)), end);
  return bytes;
}

function unsealed(bytes: Buffer): Buffer {
  const end = bytes.length - 4;
  if (crc32(bytes.subarray(0, end)) !== bytes.readUInt32LE(end))
    throw damaged("the table of a compressed log is damaged");
  return bytes;
}

export function encodeFrame({ offset, position, length, compressed, check }: Frame): Buffer {
  const entry = Buffer.alloc(ENTRY_BYTES);
  entry.writeUIntLE(offset, 0, 6);
  entry.writeUIntLE(position, 6, 6);
  entry.writeUIntLE(length, 12, 3);
  entry.writeUIntLE(compressed, 15, 3);
  entry.writeUInt16LE(check, 18);
  return sealed(entry);
}

/** Throws JobError `data-loss` when the entry is damaged. */
export function decodeFrame(bytes: Buffer): Frame {
  const entry = unsealed(bytes);
  return {
    offset: entry.readUIntLE(0, 6),
    position: entry.readUIntLE(6, 6),
    length: entry.readUIntLE(12, 3),
    compressed: entry.readUIntLE(15, 3),
    check: entry.readUInt16LE(18),
  };
}

/** How many entries the two tables of index.zst have. */
interface Footer {
  readonly outputs: number;
  readonly indexes: number;
}

export function encodeFooter({ outputs, indexes }: Footer): Buffer {
  const footer = Buffer.alloc(FOOTER_BYTES);
  footer.writeUInt32LE(outputs, 0);
  footer.writeUInt32LE(indexes, 4);
  footer.write(MAGIC, 8, "latin1");
  return sealed(footer);
}

/** Throws JobError `data-loss` when the footer is damaged, or is none. */
export function decodeFooter(bytes: Buffer): Footer {
  const footer = unsealed(bytes);
  if (footer.toString("latin1", 8, 12) !== MAGIC) throw damaged("this is no index of a compressed log");
  return { outputs: footer.readUInt32LE(0), indexes: footer.readUInt32LE(4) };
}

export function damaged(message: string, cause?: unknown): JobError {
  return new JobError("data-loss", message, { cause });
}
