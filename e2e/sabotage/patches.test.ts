import { execFileSync } from "node:child_process";
import { globSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";

const ROOT = join(import.meta.dirname, "../..");

test.each(globSync("e2e/sabotage/*.patch", { cwd: ROOT }))("%s applies to the code as it is", (patch) => {
  expect(execFileSync("git", ["apply", "--check", patch], { cwd: ROOT, encoding: "utf8" })).toBe("");
});
