import { constants } from "node:fs";
import { type FileHandle, open, unlink } from "node:fs/promises";
import { join } from "node:path";
import { writeAll } from "../log/compress.ts";
import { decodeFooter } from "../log/frames.ts";
import { compressedLogOf, type End, fileBytes, type Log, logOf, RECORD_BYTES } from "../log/log.ts";
import type { LocalBytes } from "../log/seekable.ts";
import { JobError } from "../model/errors.ts";
import { BLOCK_BYTES, inBlocks } from "./blocks.ts";
import type { Store, Stored } from "./store.ts";

/** The largest index that is kept in memory, because thousands of readers may hold one each. */
const MOST_IN_MEMORY_BYTES = 16 * 1024;

interface Archived extends AsyncDisposable {
  readonly log: Log;
}

/**
 * Opens a job's log in the archive: its index is copied to memory, or, a larger one, to a file in `directory` that has no
 * name and ends with the log; its output is read as it is asked for. `keyIn` returns the key of a file; `signal` ends all that is under way.
 */
export async function openArchivedLog(
  store: Store,
  {
    keyIn,
    compressed,
    directory,
    signal,
    end,
    mostIndexBytes = Infinity,
  }: {
    readonly keyIn: (file: string) => string;
    readonly compressed: boolean;
    readonly directory: string;
    readonly signal: AbortSignal;
    readonly end?: End;
    /** No index of the job's output is longer. */
    readonly mostIndexBytes?: number;
  },
): Promise<Archived> {
  await using opened = new AsyncDisposableStack();
  const closing = new AbortController();
  const either = AbortSignal.any([signal, closing.signal]);
  const output = opened.use(await store.open(keyIn(compressed ? "output.zst" : "output"), either));
  const stored = await store.open(keyIn(compressed ? "index.zst" : "index"), either);
  const index = await fetched(stored, { directory, compressed, mostIndexBytes }, opened);
  const blocks = opened.use(inBlocks(output));
  opened.defer(() => closing.abort());
  const log = compressed ? opened.use(compressedLogOf(index, blocks, () => {}, end)) : logOf(index, blocks, end);
  const kept = opened.move();
  return { log, [Symbol.asyncDispose]: () => kept.disposeAsync() };
}

/** Opens a file without a name, which is gone when it is closed or this process ends. */
async function nameless(directory: string): Promise<FileHandle> {
  const path = join(directory, `.index-${crypto.randomUUID()}`);
  const file = await open(path, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL, 0o600);
  await unlink(path);
  return file;
}

/** Copies an index, and closes it. Most indexes need no file, for which a full disk has no room. */
async function fetched(
  stored: Stored,
  {
    directory,
    compressed,
    mostIndexBytes,
  }: { readonly directory: string; readonly compressed: boolean; readonly mostIndexBytes: number },
  opened: AsyncDisposableStack,
): Promise<LocalBytes> {
  await using source = stored;
  const { size } = source;
  if (size > mostIndexBytes) throw longer();
  if (size <= MOST_IN_MEMORY_BYTES) {
    const bytes = Buffer.alloc(size);
    await readWhole(source, bytes, 0);
    return { size: () => size, read: (buffer, offset) => bytes.copy(buffer, 0, offset) };
  }
  await checkLast(source, compressed);
  const file = opened.use(await nameless(directory));
  const buffer = Buffer.allocUnsafeSlow(BLOCK_BYTES);
  for (let offset = 0; offset < size; offset += BLOCK_BYTES) {
    const bytes = buffer.subarray(0, size - offset);
    await readWhole(source, bytes, offset);
    await writeAll(file, bytes, offset);
  }
  return fileBytes(file.fd);
}

/** Refuses an index that ends with what no index ends with, before it is copied: it may be gigabytes of holes. */
async function checkLast(source: Stored, compressed: boolean): Promise<void> {
  const last = Buffer.alloc(RECORD_BYTES);
  await readWhole(source, last, source.size - last.length);
  if (compressed) decodeFooter(last);
  else if (last.readUIntLE(8, 6) === 0) throw longer(); // every record has a time
}

function longer(): JobError {
  return new JobError("data-loss", "the index in the archive is longer than it was");
}

async function readWhole(source: Stored, bytes: Buffer, offset: number): Promise<void> {
  if ((await source.read(bytes, offset)) < bytes.length)
    throw new JobError("data-loss", "the index in the archive is shorter than it was");
}
