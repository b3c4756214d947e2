import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { configuration } from "./configuration.ts";

const SHOWN = readFileSync(new URL("../docs/jobsd.toml", import.meta.url), "utf8");

test("the package's configuration is the one that docs show, with what the package has: a cgroup, a socket, a user", () => {
  const differing = configuration(SHOWN).split("\n");
  for (const line of SHOWN.split("\n")) if (differing.includes(line)) differing.splice(differing.indexOf(line), 1);
  expect(differing).toEqual([
    'allow-user = ["jobs"]',
    'cgroup = "/sys/fs/cgroup/jobs.slice/jobs.service"',
    'health-socket = "/run/jobs/health.sock"',
  ]);
});

test("there is no package where the configuration shows a key no more that the package sets", () => {
  expect(() => configuration(SHOWN.replace(/^#cgroup = .*$/m, ""))).toThrow("cgroup");
});
