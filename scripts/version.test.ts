import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import lock from "../package-lock.json" with { type: "json" };
import manifest from "../package.json" with { type: "json" };

test("the version stands in package.json: the lockfile follows it, and the changes begin with it", () => {
  expect([lock.version, lock.packages[""].version]).toEqual([manifest.version, manifest.version]);
  const [, heading] = /^## (.+)$/m.exec(readFileSync("CHANGELOG.md", "utf8")) ?? [];
  expect(["Not released", manifest.version]).toContain(heading);
});

test("no source has a version of its own", () => {
  const files = ["src", "cli", "certs", "docker", "debian", "packages", "scripts", "proto", "bin"];
  const { stdout } = spawnSync("grep", ["-rnF", "--exclude-dir=generated", manifest.version, ...files], {
    encoding: "utf8",
  });
  // Addresses of this host, and numbers of others that happen to be the same, are none.
  expect(stdout.split("\n").filter((line) => line !== "" && !/\d\.?0\.1\.0|0\.1\.0\.?\d/.test(line))).toEqual([]);
});
