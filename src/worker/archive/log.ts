import { constants } from "node:fs";
import { open, unlink, type FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { compressedLogOf, fileBytes, logOf, type Log } from "../log.ts";
import { BLOCK_BYTES, inBlocks } from "./blocks.ts";
import type { Store } from "./store.ts";

interface Archived extends AsyncDisposable {
  readonly log: Log;
}

/**
 * Opens a job's log in the archive: its index is copied to a file in `directory` that has no name and ends with the log,
 * its output is read as it is asked for. `keyOf` makes a file's key; `signal` ends all that is under way.
 */
export async function openArchivedLog(
  store: Store,
  {
    keyOf,
    compressed,
    directory,
    signal,
  }: {
    readonly keyOf: (file: string) => string;
    readonly compressed: boolean;
    readonly directory: string;
    readonly signal: AbortSignal;
  },
): Promise<Archived> {
  await using opened = new AsyncDisposableStack();
  const closing = new AbortController();
  const either = AbortSignal.any([signal, closing.signal]);
  const output = opened.use(await store.open(keyOf(compressed ? "output.zst" : "output"), either));
  const index = opened.use(await nameless(directory));
  await fetchTo(index, store, keyOf(compressed ? "index.zst" : "index"), either);
  const blocks = opened.use(inBlocks(output));
  opened.defer(() => closing.abort());
  const log = compressed ? opened.use(compressedLogOf(index.fd, blocks, () => {})) : logOf(fileBytes(index.fd), blocks);
  const kept = opened.move();
  return { log, [Symbol.asyncDispose]: () => kept.disposeAsync() };
}

/** A file that is gone when it is closed, or with this process. */
async function nameless(directory: string): Promise<FileHandle> {
  const path = join(directory, `.index-${crypto.randomUUID()}`);
  const file = await open(path, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL, 0o600);
  await unlink(path);
  return file;
}

async function fetchTo(file: FileHandle, store: Store, key: string, signal: AbortSignal): Promise<void> {
  await using stored = await store.open(key, signal);
  const buffer = Buffer.allocUnsafeSlow(Math.min(BLOCK_BYTES, stored.size));
  for (let offset = 0; offset < stored.size; offset += BLOCK_BYTES) {
    const count = await stored.read(buffer, offset);
    await file.write(buffer, 0, count, offset);
  }
}
