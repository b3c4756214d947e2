import { execFile } from "node:child_process";
import { mkdtempDisposableSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { verdictOf } from "./verdict.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));

/** One suite with each way to end, which vitest itself runs and reports of. */
const SUITE = `
import { beforeAll, describe, expect, test } from "vitest";
test("asserts", () => expect(1).toBe(2));
test("polls", () => expect.poll(() => 1, { timeout: 1 }).toBe(2));
test("hangs", { timeout: 1 }, () => new Promise(() => {}));
test("throws", () => { throw new TypeError("the first line\\nthe second"); });
test("fails twice", async () => {
  await using _failing = { async [Symbol.asyncDispose]() { throw new Error("clean-up"); } };
  expect(1).toBe(2);
});
test("holds", () => {});
describe("a suite whose hook fails", () => {
  beforeAll(() => { throw new Error("hook"); });
  test("is not reached", () => {});
});
`;

const tests = ["asserts", "polls", "hangs", "throws", "fails twice", "holds", "is not reached", "is of no suite"];

test("a sabotage is noticed by a test of the name that it gives, whatever that fails with, and by nothing else", async () => {
  using directory = mkdtempDisposableSync(join(ROOT, "build", "verdict-"));
  const [file, report] = [join(directory.path, "one.test.ts"), join(directory.path, "report.json")];
  writeFileSync(file, SUITE);
  const run = ["run", "--root", directory.path, "--reporter=json", `--outputFile=${report}`, "one.test.ts"];
  await promisify(execFile)(process.execPath, [join(ROOT, "node_modules/vitest/vitest.mjs"), ...run]).catch(() => {});
  const told = JSON.parse(readFileSync(report, "utf8"));
  expect(Object.fromEntries(tests.map((name) => [name, verdictOf(told, name)]))).toEqual({
    asserts: { noticed: true, by: "asserts: AssertionError: expected 1 to be 2 // Object.is equality" },
    polls: { noticed: true, by: "polls: Error: expected 1 to be 2 // Object.is equality" },
    hangs: { noticed: true, by: "hangs: TestTimeoutError: Test timed out in 1ms." },
    throws: { noticed: true, by: "throws: TypeError: the first line" },
    "fails twice": { noticed: true, by: expect.stringMatching(/^fails twice: SuppressedError: /) },
    holds: { noticed: false, by: "all passed" },
    "is not reached": { noticed: false, by: 'no test named "is not reached" was run' },
    "is of no suite": { noticed: false, by: 'no test named "is of no suite" was run' },
  });
});
