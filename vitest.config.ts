import { defineConfig } from "vitest/config";
import type { Reporter } from "vitest/node";

/** Closes with one line that a program can read. */
export const tally: Reporter = {
  onTestRunEnd(modules) {
    const tests = modules.flatMap((module) => [...module.children.allTests()]);
    const count = (state: string): number => tests.filter((test) => test.result().state === state).length;
    const skipped = count("skipped");
    process.stdout.write(
      `${count("passed")} passed, ${count("failed")} failed${skipped ? `, ${skipped} skipped` : ""}\n`,
    );
  },
};

export default defineConfig({
  test: {
    include: ["{src,cli,certs,bench,scripts,e2e/engine}/**/*.test.ts", "*.test.ts"],
    reporters: [process.stdout.isTTY ? "default" : "dot", tally],
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
