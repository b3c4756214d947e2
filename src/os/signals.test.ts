import { constants } from "node:os";
import { expect, test } from "vitest";
import { SIGNALS } from "./signals.ts";

test("signals have the numbers that they have on Linux", () => {
  expect(SIGNALS).toEqual(constants.signals);
});
