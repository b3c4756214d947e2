import { spawnSync } from "node:child_process";
import { checkout, node } from "./harness.ts";
import { median, row, type Row } from "./report.ts";

const RUNS = 20;
const MOST = 1.5;

function runMs(program: string, args: readonly string[]): number {
  const beganMs = performance.now();
  const { status } = spawnSync(program, args, { stdio: "ignore" });
  if (status !== 0) throw new Error(`${program} ${args.join(" ")} exited with ${status}`);
  return performance.now() - beganMs;
}

/** Measures `jobsctl --help` and `node -e 0` by turns, on the same Node. */
export async function cli(): Promise<Row[]> {
  const [help, empty]: [number[], number[]] = [[], []];
  for (let i = 0; i < RUNS + 1; i++) {
    help.push(runMs(checkout("bin/jobsctl"), ["--help"]));
    empty.push(runMs(node(), ["-e", "0"]));
    await new Promise(setImmediate); // so that a Ctrl-C is heard
  }
  // The first run of each reads its files from the disk.
  const [helpMs, emptyMs] = [median(help.slice(1)), median(empty.slice(1))];
  return [
    row("jobsctl --help, median", helpMs, "ms", ["node -e 0", emptyMs], {
      text: `at most ${MOST}`,
      met: helpMs <= MOST * emptyMs,
    }),
  ];
}
