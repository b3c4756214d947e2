import { createHash } from "node:crypto";
import { type FileHandle, mkdir, open, rename, rm, rmdir, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { codeOf } from "../../os/errno.ts";
import { READ_FLAGS } from "../system/file.ts";
import { type Store, unavailable } from "./store.ts";

const BLOCK_BYTES = 1024 * 1024;

/** An archive in a local directory, or one that is mounted. */
export function directoryStore(root: string): Store {
  return {
    place: root,
    async put(key, path, signal) {
      const target = join(root, key);
      const directory = dirname(target);
      await makeDirectories(root, dirname(key));
      await using source = await open(path);
      const partial = join(directory, partialOf(key.slice(key.lastIndexOf("/") + 1)));
      const wanted = await copy(source, partial, signal).catch(async (error: unknown) => {
        // A full disk gets its room back.
        await rm(partial, { force: true }).catch(() => {});
        throw error;
      });
      await rename(partial, target);
      await syncDirectory(directory);
      await using stored = await open(target);
      if ((await digest(stored, signal)) !== wanted) throw new Error(`${target} does not read as it was written`);
    },
    async has(key) {
      // A directory without anything of this worker may be a mount point whose mount is missing.
      await stat(join(root, dirname(dirname(key))));
      try {
        await stat(join(root, key));
        return true;
      } catch (error) {
        if (codeOf(error) === "ENOENT") return false;
        throw error;
      }
    },
    async remove(key, files) {
      const directory = join(root, key);
      // A directory without anything of this worker may be a mount point whose mount is missing.
      await stat(dirname(directory));
      for (const file of files.flatMap((name) => [name, partialOf(name)]))
        await rm(join(directory, file), { force: true });
      await rmdir(directory).catch((error: unknown) => {
        if (codeOf(error) !== "ENOENT" && codeOf(error) !== "ENOTEMPTY") throw error;
      });
      await syncDirectory(dirname(directory));
    },
    async open(key) {
      try {
        const file = await openStored(join(root, key));
        const { size } = await file.stat();
        return {
          size,
          read: (buffer, offset) =>
            readFully(file, buffer, offset).catch((error: unknown) => {
              throw unavailable(key, error);
            }),
          [Symbol.asyncDispose]: () => file.close(),
        };
      } catch (error) {
        throw unavailable(key, error);
      }
    },
    [Symbol.dispose]() {},
  };
}

/** What a file is called until all of it is there. */
function partialOf(name: string): string {
  return `.partial-${name}`;
}

/** A FIFO in its place would hold one of few threads, and all who read files with it. */
async function openStored(path: string): Promise<FileHandle> {
  const file = await open(path, READ_FLAGS);
  if ((await file.stat()).isFile()) return file;
  await file.close();
  throw new Error(`${path} is no regular file`);
}

/** Fills `buffer` from `offset` on, as far as the file reaches; resolves to how far that is. */
export async function readFully(file: FileHandle, buffer: Buffer, offset: number): Promise<number> {
  let count = 0;
  while (count < buffer.length) {
    const { bytesRead } = await file.read(buffer, count, buffer.length - count, offset + count);
    if (bytesRead === 0) break;
    count += bytesRead;
  }
  return count;
}

/** Makes directories below `root`, which has to exist. */
async function makeDirectories(root: string, below: string): Promise<void> {
  let directory = root;
  for (const name of below.split("/")) {
    const parent = directory;
    directory = join(parent, name);
    try {
      await mkdir(directory, { mode: 0o700 });
    } catch (error) {
      if (codeOf(error) === "EEXIST") continue;
      throw error;
    }
    await syncDirectory(parent);
  }
}

/** Resolves to the SHA-256 of what was read, once what was written has reached the disk. */
async function copy(source: FileHandle, path: string, signal: AbortSignal): Promise<string> {
  // What is there may be of a try that was cut, or a link or a FIFO that somebody put there.
  await rm(path, { force: true });
  await using target = await open(path, "wx", 0o600);
  const hash = createHash("sha256");
  for await (const block of blocks(source, signal)) {
    hash.update(block);
    await target.writeFile(block);
  }
  await target.sync();
  return hash.digest("hex");
}

async function digest(file: FileHandle, signal: AbortSignal): Promise<string> {
  const hash = createHash("sha256");
  for await (const block of blocks(file, signal)) hash.update(block);
  return hash.digest("hex");
}

/** A file's bytes, 1 MiB at a time in one buffer. */
async function* blocks(file: FileHandle, signal: AbortSignal): AsyncGenerator<Buffer> {
  const buffer = Buffer.allocUnsafeSlow(BLOCK_BYTES);
  for (let offset = 0; ;) {
    signal.throwIfAborted();
    const count = await readFully(file, buffer, offset);
    if (count > 0) yield buffer.subarray(0, count);
    if (count < buffer.length) return;
    offset += count;
  }
}

/** A name is on the disk once its directory is. */
async function syncDirectory(path: string): Promise<void> {
  await using directory = await open(path);
  await directory.sync();
}
