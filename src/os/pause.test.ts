import { expect, test } from "vitest";
import { pauseAfter } from "./pause.ts";

test("a pause is twice the one before, up to the longest, and up to half of it is left to chance", () => {
  const pauses = { firstMs: 1000, lastMs: 300_000 };
  expect([1, 2, 3, 9, 10, 11, 5000].map((failures) => pauseAfter(failures, pauses))).toEqual([
    1000, 2000, 4000, 256_000, 300_000, 300_000, 300_000,
  ]);
  expect([1, 11].map((failures) => pauseAfter(failures, pauses, 0))).toEqual([500, 150_000]);
});
