import { expect, test } from "vitest";
import { BLOCKS_BYTES, LOG_BYTES, MOST_GROWN_KIB, flooded } from "./flood.ts";
import { openBench } from "./harness.ts";

const FOLLOWERS = 100;
const MOST_KIB_EACH = 2048;

test("a flood stays within its log's limit and the daemon's memory, and each of 100 followers gets every byte or is told that it is missing", async () => {
  await using bench = await openBench({ fromSource: true });
  const program = await bench.compile("flood");
  await using daemon = await bench.startDaemon({ flags: ["--log-limit", String(LOG_BYTES)] });
  // Throws when a follower did not get what it should. One more follower is stopped meanwhile, and delays nobody.
  const { size, diskBytes, memoryKib } = await flooded(bench, daemon, { program, ms: 500, followers: FOLLOWERS });
  expect(size).toBeGreaterThan(LOG_BYTES);
  expect(diskBytes).toBeLessThanOrEqual(LOG_BYTES + BLOCKS_BYTES);
  expect(memoryKib.most - memoryKib.before).toBeLessThan(FOLLOWERS * MOST_KIB_EACH);
});

test("output that nobody follows does not pass through the daemon", async () => {
  await using bench = await openBench({ fromSource: true });
  const program = await bench.compile("flood");
  await using daemon = await bench.startDaemon({ flags: ["--log-limit", String(LOG_BYTES)] });
  const { size, memoryKib } = await flooded(bench, daemon, { program, ms: 500 });
  expect(size / 1024).toBeGreaterThan(2 * MOST_GROWN_KIB);
  expect(memoryKib.most - memoryKib.before).toBeLessThan(MOST_GROWN_KIB);
});
