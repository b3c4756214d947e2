import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { readTraceParent, writeTraceParent } from "./traceparent.ts";

const [TRACE, SPAN] = ["4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"];
const valid = `00-${TRACE}-${SPAN}-01`;

describe("a traceparent", () => {
  it("comes back as it was, when it is one of version 00", () => {
    const hex = (length: number): fc.Arbitrary<string> =>
      fc.string({ unit: fc.constantFrom(..."0123456789abcdef".split("")), minLength: length, maxLength: length });
    fc.assert(
      fc.property(hex(31), hex(15), hex(2), (trace, span, flags) => {
        const text = `00-${trace}1-${span}1-${flags}`;
        const read = readTraceParent(text);
        expect(read && writeTraceParent(read)).toBe(text);
      }),
    );
  });

  it("of a later version counts as one of version 00, whatever it has behind the four parts", () => {
    for (const text of [`01-${TRACE}-${SPAN}-01`, `cc-${TRACE}-${SPAN}-01-what the future will be like`]) {
      const read = readTraceParent(text);
      expect(read && writeTraceParent(read)).toBe(valid);
    }
  });

  it.each([
    ["nothing", undefined],
    ["an empty text", ""],
    ["version ff", `ff-${TRACE}-${SPAN}-01`],
    ["a trace that is all zero", `00-${"0".repeat(32)}-${SPAN}-01`],
    ["a span that is all zero", `00-${TRACE}-${"0".repeat(16)}-01`],
    ["capital letters", valid.toUpperCase()],
    ["more behind version 00", `${valid}-more`],
    ["more behind a later version, without a dash", `01-${TRACE}-${SPAN}-01more`],
    ["a newline behind it", `${valid}\n`],
    ["a space before it", ` ${valid}`],
    ["one digit too few", `00-${TRACE.slice(1)}-${SPAN}-01`],
    ["no flags", `00-${TRACE}-${SPAN}`],
    ["a later version without end", `01-${TRACE}-${SPAN}-01-${"x".repeat(1000)}`],
  ])("is none when it is %s", (_, text) => {
    expect(readTraceParent(text)).toBeUndefined();
  });
});
