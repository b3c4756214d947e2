import { writeSync } from "node:fs";
import { setImmediate as nextTurn } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { codeOf } from "../../../os/errno.ts";
import { JobError } from "../../model/errors.ts";
import { randomOf } from "./mutate.ts";
import type { Target } from "./target.ts";
import { targets } from "./targets.ts";

/*
 * node main.ts TARGET FILES SECONDS [SEED [CASES]]
 *
 * Gives a parser damaged files until the time is over, and prints what it met as a line of JSON. A case that does not
 * end in time ends this process, with the case's number on stderr: SEED is then that number, and CASES 1.
 */

/** The most CPU time of a case, and the most time, which is longer for a loaded machine's sake. */
const MOST_CPU_MS = 5000;
const MOST_MS = 120_000;

/** Counts of what a parser met, and the most that it took. */
export interface Met {
  readonly target: string;
  readonly cases: number;
  /** Cases that were taken for what they were damaged from, and those that ended with an error of its kind. */
  readonly read: number;
  readonly refused: number;
  /** CPU time that was spent without a turn for others, at the most, in ms. */
  readonly longestTurnMs: number;
  /** The most memory that the process had beyond that before the first case. */
  readonly memoryBytes: number;
}

/** Ends the process when a case does not end, from a thread, since a case may hold the event loop. */
function watch(current: Int32Array): void {
  const program = `
    const { workerData } = require("node:worker_threads");
    const fs = require("node:fs");
    const spent = () => { const { user, system } = process.cpuUsage(); return (user + system) / 1000; };
    let last = -1, since = Date.now(), before = spent();
    setInterval(() => {
      const now = Atomics.load(workerData.current, 0);
      if (now !== last) { last = now; since = Date.now(); before = spent(); }
      if (Date.now() - since < workerData.MOST_MS && spent() - before < workerData.MOST_CPU_MS) return;
      fs.writeSync(2, "case " + now + " does not end\\n");
      process.kill(process.pid, "SIGKILL");
    }, 100);`;
  new Worker(program, { eval: true, workerData: { current, MOST_MS, MOST_CPU_MS } }).unref();
}

/** An error that a parser may end with: one that a caller is told of, or a system call's. */
function isTold(error: unknown): boolean {
  if (error instanceof JobError) return error.code !== "internal";
  return error instanceof Error && "syscall" in error && codeOf(error) !== "unknown";
}

/** Takes turns for as long as others do; tells of the longest that there was between two of its own. */
function turnTaker(): Disposable & { longestMs(): number } {
  const spent = (): number => {
    const { user, system } = process.threadCpuUsage();
    return (user + system) / 1000;
  };
  let longest = 0;
  let last = spent();
  let taking = true;
  function take(): void {
    const now = spent();
    longest = Math.max(longest, now - last);
    last = now;
    if (taking) setImmediate(take);
  }
  setImmediate(take);
  return {
    longestMs: () => longest,
    [Symbol.dispose]() {
      taking = false;
    },
  };
}

async function fuzz(name: string, target: Target, seconds: number, seed: number, most: number): Promise<Met> {
  const current = new Int32Array(new SharedArrayBuffer(4));
  Atomics.store(current, 0, seed);
  watch(current);
  // The first case loads and compiles code, which counts for no case.
  await target(randomOf(seed)).catch(() => {});
  await nextTurn();
  const before = process.resourceUsage().maxRSS;
  using taker = turnTaker();
  let [cases, read, refused] = [0, 0, 0];
  for (const until = Date.now() + seconds * 1000; Date.now() < until && cases < most; cases++) {
    Atomics.store(current, 0, seed + cases);
    try {
      await target(randomOf(seed + cases));
      read++;
    } catch (error) {
      if (!isTold(error)) throw new Error(`case ${seed + cases} of ${name}`, { cause: error });
      refused++;
    }
    await nextTurn();
  }
  const memoryBytes = (process.resourceUsage().maxRSS - before) * 1024;
  return { target: name, cases, read, refused, longestTurnMs: taker.longestMs(), memoryBytes };
}

const [name = "", files = "", seconds = "1", seed = "1", cases = "1000000000"] = process.argv.slice(2);
const make = targets.get(name);
if (!make) throw new Error(`no target ${name}: ${[...targets.keys()].join(", ")}`);
using opened = make(files);
writeSync(1, JSON.stringify(await fuzz(name, opened.run, Number(seconds), Number(seed), Number(cases))));
process.exit(0);
