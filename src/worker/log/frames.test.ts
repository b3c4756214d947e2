import { expect, test } from "vitest";
import { compressFrame, decodeFrame, decompress, decompressSync, encodeFrame } from "./frames.ts";

const OUTPUT = Buffer.from("a line\n".repeat(1000));

test("a frame that an earlier version compressed is read, though its table notes nothing of its end", async () => {
  const compressed = Buffer.concat(await compressFrame(OUTPUT));
  const noted = { offset: 0, position: 0, length: OUTPUT.length, compressed: compressed.length };
  const earlier = decodeFrame(encodeFrame({ ...noted, check: 0 }));
  expect(decompressSync(compressed, earlier)).toEqual(OUTPUT);
  expect(await decompress(compressed, earlier)).toEqual(OUTPUT);
  const another = decodeFrame(encodeFrame({ ...noted, check: compressed.readUInt16LE(compressed.length - 2) ^ 1 }));
  expect(() => decompressSync(compressed, another)).toThrow(/is not that which its table tells of/);
  await expect(decompress(compressed, another)).rejects.toThrow(/is not that which its table tells of/);
});
