import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";
import { tally } from "../vitest.config.ts";

export default defineConfig({
  root: fileURLToPath(new URL("..", import.meta.url)),
  test: {
    include: ["packages/*.test.ts"],
    reporters: [process.stdout.isTTY ? "default" : "dot", tally],
    // The first run asks the registry for seven Nodes.
    testTimeout: 300_000,
    hookTimeout: 600_000,
  },
});
