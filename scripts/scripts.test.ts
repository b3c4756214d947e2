import { spawnSync } from "node:child_process";
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
