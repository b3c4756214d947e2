import { describe, expect, test } from "vitest";
import { format, median, quantile, row, table } from "./report.ts";

describe("median and quantile", () => {
  test("the median is the middle value, or the mean of the two in the middle, in the order of numbers", () => {
    expect(median([10, 9, 100])).toBe(10);
    expect(median([4, 1, 3, 2])).toBe(2.5);
    expect(median([7])).toBe(7);
  });

  test("a quantile is one of the values", () => {
    const values = Array.from({ length: 100 }, (_, i) => 100 - i);
    expect([0, 0.5, 0.99, 1].map((q) => quantile(values, q))).toEqual([1, 50, 99, 100]);
  });

  test("nothing has neither", () => {
    expect(() => median([])).toThrow(RangeError);
    expect(() => quantile([], 0.5)).toThrow(RangeError);
  });
});

test("figures have three digits that count", () => {
  expect([0.012345, 1.2345, 99.96, 1234.5].map(format)).toEqual(["0.0123", "1.23", "100", "1235"]);
});

test("a row says what it is compared with, and by how much it differs", () => {
  const made = row("start", 3, "ms", ["empty call", 2]);
  expect(made).toEqual({
    name: "start",
    value: 3,
    unit: "ms",
    comparedWith: "empty call, 2.00 ms",
    ratio: 1.5,
    target: null,
  });
  expect(row("idle", 3, "ms", ["nothing", 0]).ratio).toBeNull();
});

test("a table has aligned columns, and tells what was met and what was not", () => {
  const rows = [
    row("start", 3, "ms", ["empty call", 2], { text: "at most 1.0 ms above", met: true }),
    row("stream", 100, "MB/s", ["bare server", 200], { text: "at least 0.8", met: false }),
  ];
  expect(table(rows)).toBe(
    [
      "        measured  compared with          ratio  target",
      "start   3.00 ms   empty call, 2.00 ms    1.50   met: at most 1.0 ms above",
      "stream  100 MB/s  bare server, 200 MB/s  0.500  NOT MET: at least 0.8",
      "",
    ].join("\n"),
  );
});
