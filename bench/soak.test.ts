import { expect, test } from "vitest";
import { openBench } from "./harness.ts";
import { soaked } from "./soak.ts";

test("2,000 short jobs, 32 at once, leave no descriptor, cgroup, process or zombie behind", async () => {
  await using bench = await openBench({ fromSource: true });
  await using daemon = await bench.startDaemon({ preload: { heapMb: 0 } });
  const { before, steps } = await soaked(bench, daemon, { jobs: 2000, steps: 4 });
  expect(steps.map(({ held }) => held)).toEqual(steps.map(() => before));
  expect(before.zombies).toBe(0);
});
