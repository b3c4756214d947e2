import { statSync } from "node:fs";
import { type FileHandle, open, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { turns } from "../../os/turn.ts";
import { COMPRESSED_FILES, logFilesIn, NEW_FILES, PLAIN_FILES } from "./files.ts";
import { FIRST_RECORD_AT, HEADER_BYTES, type Log, openPlainLog, RECORD_BYTES } from "./log.ts";
import {
  compressFrame,
  decodeFrame,
  encodeFrame,
  ENTRY_BYTES,
  FRAME_BYTES,
  frameTableHeader,
  INDEX_FRAME_BYTES,
  release,
  seekTableEnds,
  sizesOf,
  SKIPPABLE_BYTES,
} from "./seekable.ts";

/** A file that takes no more of the disk would take no less when compressed. */
const LEAST_BYTES = 4096;

/**
 * Compresses the log in an ended job's directory; false when it is left as it is, being small. A daemon that dies between
 * any two steps leaves a log that can be read, because the plain files are there until both others are, whole and on the
 * disk; the next call goes on. Memory: a frame of 256 KiB, and as much for what becomes of it.
 */
export async function compressLog(directory: string, signal: AbortSignal, leastBytes = LEAST_BYTES): Promise<boolean> {
  if (logFilesIn(directory) === "compressed") {
    await removeAll(directory, PLAIN_FILES);
    return true;
  }
  if (PLAIN_FILES.every((name) => statSync(join(directory, name)).blocks * 512 <= leastBytes)) return false;
  try {
    await writeCompressed(directory, signal);
    for (const name of COMPRESSED_FILES) await rename(join(directory, `${name}.new`), join(directory, name));
    await sync(directory);
  } catch (error) {
    // What it has taken of a full disk.
    await removeUnfinished(directory);
    throw error;
  }
  await removeAll(directory, PLAIN_FILES);
  return true;
}

/** What compressing has left that was cut. */
export async function removeUnfinished(directory: string): Promise<void> {
  await removeAll(directory, NEW_FILES);
}

async function removeAll(directory: string, names: readonly string[]): Promise<void> {
  for (const name of names) await rm(join(directory, name), { force: true });
}

async function sync(directory: string): Promise<void> {
  await using handle = await open(directory);
  await handle.sync();
}

async function writeCompressed(directory: string, signal: AbortSignal): Promise<void> {
  using log = openPlainLog(directory);
  await using output = await open(join(directory, "output.zst.new"), "w", 0o600);
  await using index = await open(join(directory, "index.zst.new"), "w+", 0o600);
  const frames = await writeOutput(log, output, index, signal);
  await writeIndex(log, index, SKIPPABLE_BYTES + (frames + 1) * ENTRY_BYTES, signal);
  await output.sync();
  await index.sync();
}

/** Returns how many frames it made; their entries are behind where the frame table's header goes. */
async function writeOutput(log: Log, output: FileHandle, index: FileHandle, signal: AbortSignal): Promise<number> {
  const buffer = Buffer.allocUnsafeSlow(FRAME_BYTES);
  let count = 0;
  let position = 0;
  const enter = (offset: number, length: number, compressed: number): Promise<unknown> =>
    writeAll(index, encodeFrame({ offset, position, length, compressed }), SKIPPABLE_BYTES + count * ENTRY_BYTES);
  for await (const { from, to } of runs(log)) {
    signal.throwIfAborted();
    const bytes = buffer.subarray(0, to - from);
    if ((await log.output.read(bytes, from)) < bytes.length) throw new Error("the output is cut short");
    const compressed = await writeFrame(output, bytes, position);
    await enter(from, bytes.length, compressed);
    position += compressed;
    count++;
  }
  await enter(log.output.size(), 0, 0);
  await writeAll(index, frameTableHeader(count + 1), 0);
  await writeSeekTable(output, position, count, entrySizes(index, count));
  return count;
}

/** Of what was kept, none longer than a frame. */
async function* runs(log: Log): AsyncGenerator<{ readonly from: number; readonly to: number }> {
  const rest = turns();
  const size = log.output.size();
  for (let from = log.header().first; from < size;) {
    const { source, end } = log.pieceAt(from);
    const most = Math.min(size, from + FRAME_BYTES);
    let to = end;
    if (source !== undefined) {
      for (let next = log.pieceAt(to); to < most && next.source !== undefined; next = log.pieceAt(to)) {
        to = next.end;
        await rest();
      }
      to = Math.min(to, most);
      yield { from, to };
    }
    from = to;
    await rest();
  }
}

/** Read back, because nobody knows how many there are. */
async function* entrySizes(index: FileHandle, count: number): AsyncGenerator<Buffer> {
  const entry = Buffer.alloc(ENTRY_BYTES);
  for (let n = 0; n < count; n++) {
    await index.read(entry, 0, ENTRY_BYTES, SKIPPABLE_BYTES + n * ENTRY_BYTES);
    const { compressed, length } = decodeFrame(entry);
    yield sizesOf(compressed, length);
  }
}

async function writeIndex(log: Log, index: FileHandle, start: number, signal: AbortSignal): Promise<void> {
  const buffer = Buffer.alloc(INDEX_FRAME_BYTES);
  const sizes = [sizesOf(start, 0)];
  const skipped = log.header().firstRecord * RECORD_BYTES;
  let position = start;
  for (let at = 0; ; at += INDEX_FRAME_BYTES) {
    signal.throwIfAborted();
    // Behind the header comes the first record that holds.
    const head = at === 0 ? log.index.read(buffer.subarray(0, HEADER_BYTES), 0) : 0;
    if (at === 0) buffer.writeBigUInt64LE(0n, FIRST_RECORD_AT);
    const count = head + log.index.read(buffer.subarray(head), skipped + at + head);
    if (count === 0) break;
    const compressed = await writeFrame(index, buffer.subarray(0, count), position);
    sizes.push(sizesOf(compressed, count));
    position += compressed;
  }
  await writeSeekTable(index, position, sizes.length, sizes);
}

async function writeSeekTable(
  file: FileHandle,
  start: number,
  count: number,
  sizes: AsyncIterable<Buffer> | Iterable<Buffer>,
): Promise<void> {
  const { header, footer } = seekTableEnds(count);
  let position = start;
  const put = async (bytes: Buffer): Promise<void> => {
    await writeAll(file, bytes, position);
    position += bytes.length;
  };
  await put(header);
  for await (const each of sizes) await put(each);
  await put(footer);
}

/** Resolves to how much of the file it takes. */
async function writeFrame(file: FileHandle, bytes: Buffer, position: number): Promise<number> {
  let end = position;
  const pieces = await compressFrame(bytes);
  for (const piece of pieces) {
    await writeAll(file, piece, end);
    end += piece.length;
  }
  for (const piece of pieces) release(piece);
  return end - position;
}

/** A disk that gets full takes a part. */
export async function writeAll(file: FileHandle, bytes: Buffer, position: number): Promise<void> {
  for (let done = 0; done < bytes.length;)
    done += (await file.write(bytes, done, bytes.length - done, position + done)).bytesWritten;
}
