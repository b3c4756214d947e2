import { randomBytes, randomInt } from "node:crypto";
import { setImmediate } from "node:timers/promises";
import { expect, test } from "vitest";
import { openLog } from "../log/log.ts";
import { readOutput } from "../log/reader.ts";
import { finished, sh, testWorker } from "../testing/worker.ts";
import { BLOCK_BYTES, inBlocks } from "./blocks.ts";

const BYTES = randomBytes(5 * BLOCK_BYTES + 7);

/** A stored file that keeps count of what is read of it, and fails when it is told to. */
function stored() {
  const reads: number[] = [];
  const file = {
    reads,
    bytes: 0,
    failing: false,
    size: BYTES.length,
    read: async (buffer: Buffer, offset: number) => {
      reads.push(offset / BLOCK_BYTES);
      file.bytes += buffer.length;
      if (file.failing) throw new Error("away");
      return BYTES.copy(buffer, 0, offset);
    },
  };
  return file;
}

test("whatever is asked for comes as it is stored, up to the end", async () => {
  await using blocks = inBlocks(stored());
  for (let i = 0; i < 200; i++) {
    const [offset, length] = [randomInt(BYTES.length + 10), randomInt(1, 2 * BLOCK_BYTES)];
    const buffer = Buffer.alloc(length);
    const count = await blocks.read(buffer, offset);
    expect(buffer.subarray(0, count).equals(BYTES.subarray(offset, offset + length))).toBe(true);
  }
});

test("who reads on has each block read once, one ahead", async () => {
  const file = stored();
  await using blocks = inBlocks(file);
  const buffer = Buffer.alloc(100_000);
  for (let offset = 0; offset < BYTES.length; offset += buffer.length) {
    await blocks.read(buffer, offset);
    expect(file.reads.length).toBeLessThanOrEqual(Math.floor((offset + buffer.length) / BLOCK_BYTES) + 2);
  }
  expect(file.reads).toEqual([0, 1, 2, 3, 4, 5]);
  // Those before are held no more.
  await blocks.read(buffer, 0);
  expect(file.reads).toEqual([0, 1, 2, 3, 4, 5, 0, 1]);
});

test("of many readers some hold blocks, and the others read what they are asked for", async () => {
  const files = Array.from({ length: 100 }, stored);
  const readers = files.map(inBlocks);
  const buffer = Buffer.alloc(10);
  const readAll = async (): Promise<void> => {
    for (const reader of readers) {
      expect(await reader.read(buffer, BLOCK_BYTES - 5)).toBe(10);
      expect(buffer.equals(BYTES.subarray(BLOCK_BYTES - 5, BLOCK_BYTES + 5))).toBe(true);
    }
  };
  await readAll();
  const holding = (): number => files.filter((file) => file.bytes > BLOCK_BYTES).length;
  expect(holding()).toBe(32);
  expect(files.filter((file) => file.bytes === 10)).toHaveLength(68);
  for (const reader of readers.splice(0, 10)) await reader[Symbol.asyncDispose]();
  await readAll();
  expect(holding()).toBe(42);
  for (const reader of readers) await reader[Symbol.asyncDispose]();
});

test("a block that could not be read ahead is nobody's failure, and is asked for again", async () => {
  const file = stored();
  await using blocks = inBlocks(file);
  const buffer = Buffer.alloc(10);
  file.failing = true;
  await expect(blocks.read(buffer, 0)).rejects.toThrow("away");
  file.failing = false;
  await blocks.read(buffer, 0);
  file.failing = true;
  await expect(blocks.read(buffer, 2 * BLOCK_BYTES)).rejects.toThrow("away");
  file.failing = false;
  expect(await blocks.read(buffer, 2 * BLOCK_BYTES)).toBe(10);
  expect(buffer.equals(BYTES.subarray(2 * BLOCK_BYTES, 2 * BLOCK_BYTES + 10))).toBe(true);
});

test("a stream's next bytes may fail while nobody waits for them: it is told when they are asked for", async () => {
  await using worker = await testWorker();
  const { id } = await finished(worker, sh("head -c 1000000 /dev/zero"));
  using log = openLog(worker.directory(id));
  const output = {
    ...log.output,
    read: async (buffer: Buffer, offset: number) => {
      if (offset > 0) throw new Error("away");
      return log.output.read(buffer, offset);
    },
  };
  const stream = readOutput({ ...log, output }, { ended: () => true, subscribe: () => new DisposableStack() }, {});
  expect((await stream.next()).done).toBe(false);
  // Here a rejection that nobody has asked for would end the process.
  await setImmediate();
  await setImmediate();
  await expect(stream.next()).rejects.toThrow("away");
});
