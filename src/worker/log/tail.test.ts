import { describe, expect, test } from "vitest";
import { HEADER_BYTES, logOf, RECORD_BYTES } from "./log.ts";
import { type Live, readOutput } from "./reader.ts";

test.each([
  { source: "stdout", most: 64 },
  { source: undefined, most: 64 },
] as const)(
  "a tail of one line, of a log of 200 GiB, reads the end of it alone ($source)",
  async ({ source, most }) => {
    const [pieces, pieceBytes, line] = [3200, 64 * 2 ** 20, 64] as const;
    const size = pieces * pieceBytes;
    const index = Buffer.alloc(HEADER_BYTES + pieces * RECORD_BYTES);
    index.write("jobslog1", 0, "latin1");
    for (let i = 0; i < pieces; i++) {
      index.writeUIntLE(i * pieceBytes, HEADER_BYTES + i * RECORD_BYTES, 6);
      index.writeUInt16LE(1, HEADER_BYTES + i * RECORD_BYTES + 6);
      index.writeUIntLE(1_790_000_000_000 + i, HEADER_BYTES + i * RECORD_BYTES + 8, 6);
    }
    const read = { index: 0, output: 0 };
    const log = logOf(
      {
        size: () => index.length,
        read(buffer, offset) {
          read.index++;
          return index.copy(buffer, 0, offset);
        },
      },
      {
        size: () => size,
        read(buffer, offset) {
          read.output += buffer.length;
          buffer.fill("x");
          for (let at = line - 1 - (offset % line); at < buffer.length; at += line) buffer[at] = 0x0a;
          return buffer.length;
        },
      },
    );
    const live: Live = { ended: () => true, subscribe: () => ({ [Symbol.dispose]() {} }) };
    const position = { kind: "tail-lines", count: 1 } as const;
    const found = [];
    for await (const piece of readOutput(log, live, { position, ...(source && { source }) })) found.push(piece.offset);
    expect(found).toEqual([size - line]);
    expect(read.output).toBeLessThanOrEqual(256 * 1024 + line);
    expect(read.index).toBeLessThanOrEqual(most);
  },
);

describe("a tail that has a gap of 64 TiB before it", () => {
  /** stdout at 0 and after the gap, ten bytes each. */
  const starts = [0, 10, 2 ** 46];
  const size = 2 ** 46 + 10;
  const index = Buffer.alloc(HEADER_BYTES + starts.length * RECORD_BYTES);
  index.write("jobslog1", 0, "latin1");
  for (const [i, start] of starts.entries()) {
    index.writeUIntLE(start, HEADER_BYTES + i * RECORD_BYTES, 6);
    index.writeUInt16LE(i % 2 === 0 ? 1 : 0, HEADER_BYTES + i * RECORD_BYTES + 6);
    index.writeUIntLE(1_790_000_000_000, HEADER_BYTES + i * RECORD_BYTES + 8, 6);
  }
  const log = logOf(
    {
      size: () => index.length,
      read: (buffer, offset) => (offset > index.length ? 0 : index.copy(buffer, 0, offset)),
    },
    {
      size: () => size,
      read(buffer) {
        buffer.fill("x");
        return buffer.length;
      },
    },
  );

  test.each(["tail-bytes", "tail-lines"] as const)("is found at once: %s", async (kind) => {
    const live: Live = { ended: () => true, subscribe: () => ({ [Symbol.dispose]() {} }) };
    const read = [];
    for await (const { kind: what, offset } of readOutput(log, live, { position: { kind, count: 15 } }))
      read.push([what, offset]);
    expect(read).toEqual(
      kind === "tail-bytes"
        ? [
            ["chunk", 5],
            ["gap", 10],
            ["chunk", 2 ** 46],
          ]
        : [
            ["chunk", 0],
            ["gap", 10],
            ["chunk", 2 ** 46],
          ],
    );
  });
});
