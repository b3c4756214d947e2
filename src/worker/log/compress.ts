import { statSync } from "node:fs";
import { type FileHandle, open, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { turns } from "../../os/turn.ts";
import { COMPRESSED_FILES, logFilesIn, NEW_FILES, PLAIN_FILES } from "./files.ts";
import { FIRST_RECORD_AT, HEADER_BYTES, type Log, openPlainLog, RECORD_BYTES } from "./log.ts";
import {
  CHECK_BYTES,
  compressFrame,
  encodeFooter,
  encodeFrame,
  ENTRY_BYTES,
  FRAME_BYTES,
  type Frame,
  INDEX_FRAME_BYTES,
  release,
  SKIPPABLE_BYTES,
  skippableHeader,
} from "./frames.ts";

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
    // A full disk gets its room back.
    await removeUnfinished(directory);
    throw error;
  }
  await removeAll(directory, PLAIN_FILES);
  return true;
}

/** Removes the files that a cut compression has left. */
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
  await using index = await open(join(directory, "index.zst.new"), "w", 0o600);
  const entries = await writeOutput(log, output, index, signal);
  await writeIndex(log, index, entries, signal);
  await output.sync();
  await index.sync();
}

/** Writes output.zst, and its table into index.zst. Resolves to how many entries the table has. */
async function writeOutput(log: Log, output: FileHandle, index: FileHandle, signal: AbortSignal): Promise<number> {
  const buffer = Buffer.allocUnsafeSlow(FRAME_BYTES);
  let entries = 0;
  let position = 0;
  const enter = (offset: number, length: number, written: Written): Promise<void> => {
    const entry = encodeFrame({ offset, position, length, ...written });
    return writeAll(index, entry, SKIPPABLE_BYTES + entries++ * ENTRY_BYTES);
  };
  for await (const { from, to } of runs(log)) {
    signal.throwIfAborted();
    const bytes = buffer.subarray(0, to - from);
    if ((await log.output.read(bytes, from)) < bytes.length) throw new Error("the output is cut short");
    const written = await writeFrame(output, bytes, position);
    await enter(from, bytes.length, written);
    position += written.compressed;
  }
  await enter(log.output.size(), 0, NOTHING);
  await writeAll(index, skippableHeader(entries * ENTRY_BYTES), 0);
  return entries;
}

/** Returns where what was kept begins and ends, in runs that are no longer than a frame. */
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

/** Writes the rest of index.zst, behind a table of so many entries. */
async function writeIndex(log: Log, file: FileHandle, outputs: number, signal: AbortSignal): Promise<void> {
  const buffer = Buffer.alloc(INDEX_FRAME_BYTES);
  const table: Buffer[] = [];
  const skipped = log.header().firstRecord * RECORD_BYTES;
  let position = SKIPPABLE_BYTES + outputs * ENTRY_BYTES;
  let offset = 0;
  for (let length = -1; length !== 0; offset += length) {
    signal.throwIfAborted();
    // The first record that holds follows the header.
    const head = offset === 0 ? log.index.read(buffer.subarray(0, HEADER_BYTES), 0) : 0;
    if (offset === 0) buffer.writeBigUInt64LE(0n, FIRST_RECORD_AT);
    length = head + log.index.read(buffer.subarray(head), skipped + offset + head);
    const written = length > 0 ? await writeFrame(file, buffer.subarray(0, length), position) : NOTHING;
    table.push(encodeFrame({ offset, position, length, ...written }));
    position += written.compressed;
  }
  const footer = encodeFooter({ outputs, indexes: table.length });
  const header = skippableHeader(table.length * ENTRY_BYTES + footer.length);
  await writeAll(file, Buffer.concat([header, ...table, footer]), position);
}

type Written = Pick<Frame, "compressed" | "check">;
const NOTHING: Written = { compressed: 0, check: 0 };

async function writeFrame(file: FileHandle, bytes: Buffer, position: number): Promise<Written> {
  let end = position;
  const pieces = await compressFrame(bytes);
  for (const piece of pieces) {
    await writeAll(file, piece, end);
    end += piece.length;
  }
  const tail = Buffer.concat(pieces.map((piece) => piece.subarray(-CHECK_BYTES)));
  for (const piece of pieces) release(piece);
  return { compressed: end - position, check: tail.readUInt16LE(tail.length - CHECK_BYTES) };
}

/** A disk that gets full takes a part. */
export async function writeAll(file: FileHandle, bytes: Buffer, position: number): Promise<void> {
  for (let done = 0; done < bytes.length;)
    done += (await file.write(bytes, done, bytes.length - done, position + done)).bytesWritten;
}
