import { execFileSync, spawnSync } from "node:child_process";
import { join } from "node:path";
import { expect, test } from "vitest";
import manifest from "../package.json" with { type: "json" };

const ROOT = join(import.meta.dirname, "..");

/** As npm does it: the shell of .npmrc, in the directory of package.json. */
const shell = (script: string) => spawnSync("./scripts/shell", ["-c", script], { cwd: ROOT, encoding: "utf8" });

test("npm's shell takes jobs for the program of this checkout, and not for the shell's own command", () => {
  expect(shell(`'jobs' "--version"`)).toMatchObject({ status: 0, stdout: expect.stringContaining(manifest.version) });
  expect(shell(`'jobs' "no-such-command"`)).toMatchObject({ status: 125 });
  const configured = execFileSync("npm", ["config", "get", "script-shell"], { cwd: ROOT, encoding: "utf8" });
  expect(configured.trim()).toBe("./scripts/shell");
});

test("npm's shell is a shell for all else", () => {
  expect(shell('printf %s "$0 $((1 + 1))"; exit 3')).toMatchObject({ status: 3, stdout: "./scripts/shell 2" });
});

test.each(Object.entries(manifest.scripts).filter(([, script]) => script.startsWith(": ")))(
  "npm run %s: what it says of itself runs nothing",
  (_name, script) => {
    const [said = ""] = script.split(" && ", 1);
    expect(shell(said)).toMatchObject({ status: 0, stdout: "", stderr: "" });
  },
);
