import type { Bytes } from "../log/seekable.ts";
import type { Stored } from "./store.ts";

/** The size of a block: a request to an archive takes as long as so many bytes of its answer. */
export const BLOCK_BYTES = 1024 * 1024;

/** Readers that hold two blocks each. */
const MOST_HOLDERS = 32;
let holders = 0;

/**
 * A stored file for readers who want little at a time, mostly in order: it is read in blocks, of which the one that was
 * read last and the next are held. Where 32 do so already, it is read as it is asked for. Disposing waits for what is
 * being read.
 */
export function inBlocks({ size, read }: Pick<Stored, "size" | "read">): Bytes & AsyncDisposable {
  const held = new Map<number, Promise<Buffer>>();
  let holds = false;

  async function load(index: number): Promise<Buffer> {
    const offset = index * BLOCK_BYTES;
    const bytes = Buffer.allocUnsafeSlow(Math.min(BLOCK_BYTES, size - offset));
    return bytes.subarray(0, await read(bytes, offset));
  }

  function block(index: number): Promise<Buffer> {
    const found = held.get(index) ?? load(index);
    held.set(index, found);
    // The reader that waits gets the error, and the next read tries again.
    found.catch(() => held.delete(index));
    return found;
  }

  return {
    size: () => size,
    async read(buffer, offset) {
      if (!holds && holders >= MOST_HOLDERS) return read(buffer, offset);
      if (!holds) holders++;
      holds = true;
      let count = 0;
      while (count < buffer.length && offset + count < size) {
        const index = Math.floor((offset + count) / BLOCK_BYTES);
        for (const other of held.keys()) if (other !== index && other !== index + 1) held.delete(other);
        const bytes = await block(index);
        if ((index + 1) * BLOCK_BYTES < size) void block(index + 1);
        const copied = bytes.copy(buffer, count, offset + count - index * BLOCK_BYTES);
        if (copied === 0) break;
        count += copied;
      }
      return count;
    },
    async [Symbol.asyncDispose]() {
      await Promise.allSettled(held.values());
      held.clear();
      if (holds) holders--;
      holds = false;
    },
  };
}
