import { availableParallelism } from "node:os";
import { defineConfig } from "vitest/config";
import type { Reporter, TestCase, TestSuite } from "vitest/node";

/** Tells once what was skipped and why, and closes with one line that a program can read. */
export const tally: Reporter = {
  onTestRunEnd(modules) {
    const tests = modules.flatMap((module) => [...module.children.allTests()]);
    const of = (state: string): TestCase[] => tests.filter((test) => test.result().state === state);
    const skipped = of("skipped");
    const reasons = Map.groupBy(skipped, lackingOf);
    for (const [why, { length }] of reasons) process.stdout.write(`${length} skipped: ${why}\n`);
    process.stdout.write(
      `${of("passed").length} passed, ${of("failed").length} failed${skipped.length ? `, ${skipped.length} skipped` : ""}\n`,
    );
  },
};

/** Why a test was left out: its own reason, or that of a suite around it (src/testing/root.ts). */
function lackingOf(test: TestCase | TestSuite): string {
  const own = test.meta().lacking;
  if (own !== undefined) return own;
  return test.parent.type === "suite" ? lackingOf(test.parent) : "not asked for";
}

export default defineConfig({
  test: {
    include: ["{src,cli,certs,debian,bench,scripts,e2e/engine,e2e/sabotage}/**/*.test.ts", "*.test.ts"],
    reporters: [process.stdout.isTTY ? "default" : "dot", tally],
    // Tests wait for processes as much as they compute: one worker more than there are CPUs keeps those busy.
    maxWorkers: availableParallelism() + 1,
    // A test that hangs is told of late, and none that works is cut short on a machine that has much else to do.
    testTimeout: 180_000,
    hookTimeout: 180_000,
  },
});
