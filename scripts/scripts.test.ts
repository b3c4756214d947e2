import { spawnSync } from "node:child_process";
import { globSync, readFileSync } from "node:fs";
import { expect, test } from "vitest";
import manifest from "../package.json" with { type: "json" };

test.each(Object.entries(manifest.scripts).filter(([, script]) => script.startsWith(": ")))(
  "npm run %s: what it says of itself runs nothing",
  (_name, script) => {
    const [said = ""] = script.split(" && ", 1);
    const { status, stdout, stderr } = spawnSync("sh", ["-c", said], { encoding: "utf8" });
    expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: "", stderr: "" });
  },
);

test.each(globSync(".github/workflows/*.yml"))("%s runs scripts that are there, and actions as they were", (path) => {
  const text = readFileSync(path, "utf8");
  const named = [...text.matchAll(/npm run ([\w:]+)/g)].map(([, name = ""]) => name);
  expect(named.filter((name) => !(name in manifest.scripts))).toEqual([]);
  // A tag of somebody else's repository may be moved.
  const actions = [...text.matchAll(/uses: (\S+)/g)].map(([, name = ""]) => name);
  expect(actions.filter((name) => !/^\.\/|@[0-9a-f]{40}$/.test(name))).toEqual([]);
});
