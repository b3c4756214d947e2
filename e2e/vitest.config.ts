import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";
import type { Reporter } from "vitest/node";
import { tally } from "../vitest.config.ts";

/** Suites that measure what a job gets of the machine, fill it, set its clock, or have another machine beside it. */
const ALONE = ["limits", "update", "crowd", "time", "installed"].map((name) => `e2e/${name}.test.ts`);

const times: Reporter = {
  onTestRunEnd(modules) {
    for (const module of modules) {
      const seconds = module.diagnostic().duration / 1000;
      process.stdout.write(`${seconds.toFixed(1).padStart(7)} s  ${module.relativeModuleId}\n`);
    }
  },
};

export default defineConfig({
  root: fileURLToPath(new URL("..", import.meta.url)),
  test: {
    reporters: [process.stdout.isTTY ? "default" : "dot", times, tally],
    testTimeout: 300_000,
    hookTimeout: 300_000,
    projects: [
      {
        extends: true,
        // While one waits, as for a grace period or for a container, the others have the processors.
        test: {
          name: "beside",
          include: ["e2e/*.test.ts"],
          exclude: ALONE,
          maxWorkers: 3,
          sequence: { groupOrder: 1 },
        },
      },
      {
        extends: true,
        test: { name: "alone", include: ALONE, fileParallelism: false, sequence: { groupOrder: 2 } },
      },
    ],
  },
});
