import { isUtf8 } from "node:buffer";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { byteLengthOf, bytesOf, isBytes, readable, textOf } from "./bytes.ts";

const bytes = fc.uint8Array({ maxLength: 40 });
/** Bytes of which long runs are UTF-8, cut anywhere. */
const nearlyUtf8 = fc
  .tuple(fc.string({ unit: "binary", maxLength: 20 }), bytes, fc.nat(80))
  .map(([text, more, cut]) => Uint8Array.from([...Buffer.from(text).subarray(0, cut), ...more]));

describe("bytes as text", () => {
  it("come back as they were, whatever they are", () => {
    fc.assert(
      fc.property(fc.oneof(bytes, nearlyUtf8), (some) => {
        const text = textOf(some);
        expect(bytesOf(text)).toEqual(Buffer.from(some));
        expect(byteLengthOf(text)).toBe(some.length);
        expect(isBytes(text)).toBe(true);
        expect(text.isWellFormed()).toBe(isUtf8(some));
      }),
      { numRuns: 2000 },
    );
  });

  it("are what UTF-8 says where they are UTF-8, a replacement character among them", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), (text) => {
        expect(textOf(Buffer.from(`${text}\ufffd`))).toBe(`${text}\ufffd`);
        expect(bytesOf(text)).toEqual(Buffer.from(text));
      }),
    );
  });

  it.each([
    ["an overlong slash", [0xc0, 0xaf]],
    ["a surrogate in UTF-8", [0xed, 0xb2, 0x80]],
    ["more than Unicode has", [0xf4, 0x90, 0x80, 0x80]],
    ["a character without its end", [0xe2, 0x82]],
  ])("keep %s byte by byte, so that none passes for another character", (_, some) => {
    expect(textOf(Uint8Array.from(some))).toBe(some.map((byte) => String.fromCharCode(0xdc00 + byte)).join(""));
    expect(bytesOf(textOf(Uint8Array.from(some)))).toEqual(Buffer.from(some));
  });

  it("are no bytes where a surrogate stands alone that is none of theirs", () => {
    expect(["\ud800", "a\udc7f", "\udd00b"].map(isBytes)).toEqual([false, false, false]);
  });

  it("are read by a person with the byte's number", () => {
    expect(readable(textOf(Uint8Array.of(0x61, 0xff, 0x62)))).toBe("a\\xffb");
    expect(readable("a\u{1f600}")).toBe("a\u{1f600}");
  });
});
