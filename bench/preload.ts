/**
 * Loaded into a daemon that is measured: holds live heap, and on SIGUSR2 collects garbage and writes the number of bytes in
 * use into a file.
 */
import { writeFileSync } from "node:fs";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

interface Entry {
  readonly id: number;
  readonly text: string;
  readonly next: Entry | undefined;
}

const held: Entry[] = [];
const wantedBytes = Number(process.env["JOBS_BENCH_HEAP_MB"]) * 1e6;

for (const before = process.memoryUsage().heapUsed; process.memoryUsage().heapUsed - before < wantedBytes;)
  for (let i = 0; i < 10_000; i++) {
    const id = held.length;
    held.push({ id, text: `entry ${id}`, next: held[id - 1] });
  }

setFlagsFromString("--expose-gc");
const collect: unknown = runInNewContext("gc");
process.on("SIGUSR2", () => {
  if (typeof collect === "function") collect();
  const { heapUsed, external } = process.memoryUsage();
  writeFileSync(process.env["JOBS_BENCH_IN_USE"] ?? "/dev/null", String(heapUsed + external));
  // The compiler must not find the heap unused.
  if (held.length === 1) held.pop();
});
