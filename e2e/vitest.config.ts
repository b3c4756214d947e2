import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";
import type { Reporter } from "vitest/node";
import { tally } from "../vitest.config.ts";

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
    include: ["e2e/*.test.ts"],
    // One after the other: the suites share one engine, and in a virtual machine its two slow processors.
    fileParallelism: false,
    reporters: [process.stdout.isTTY ? "default" : "dot", times, tally],
    testTimeout: 120_000,
    hookTimeout: 120_000,
  },
});
