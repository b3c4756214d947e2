import { writeFileSync } from "node:fs";
import { cpus, release } from "node:os";
import { inspect, parseArgs } from "node:util";
import { reasonOf } from "../src/os/errno.ts";
import { cli } from "./cli.ts";
import { copies } from "./copies.ts";
import { crowd } from "./crowd.ts";
import { flood } from "./flood.ts";
import { idle, latency } from "./follow.ts";
import { type Bench, openBench, unbuilt } from "./harness.ts";
import { logs } from "./logs.ts";
import { memory } from "./memory.ts";
import { table, type Row } from "./report.ts";
import { peer } from "./peer.ts";
import { records } from "./records.ts";
import { restart } from "./restart.ts";
import { soak } from "./soak.ts";
import { flight, heap, isolation, start, watched } from "./start.ts";
import { stream } from "./stream.ts";

/** The benchmarks in their order: starts come before anything has filled the disk. */
const BENCHMARKS: Readonly<Record<string, (bench: Bench) => Promise<Row[]>>> = {
  start,
  peer,
  heap,
  watched,
  isolation,
  flight,
  cli,
  latency,
  stream,
  copies,
  idle,
  memory,
  restart,
  records,
  flood,
  soak,
  logs,
  crowd,
};

const INTERRUPTED = Symbol("interrupted");

const USAGE = `Usage: npm run bench -- [--only NAME] [--json FILE]

Measures the built programs on this machine, each figure beside what it is compared with in the same run.

  --only NAME  one of ${Object.keys(BENCHMARKS).join(", ")}; may be repeated
  --json FILE  also write the rows there: name, value, unit, comparedWith, ratio, target

Exits with 1 when one of them failed, or a target was not met.
TMPDIR says where the daemons' state is for that time, JOBS_BENCH_SOAK how many jobs a soak has: 5000 when not given.
`;

process.exit(await main(process.argv.slice(2)));

/** Runs benchmarks. Resolves to the exit code: 1 if one failed or missed its target, 2 for a wrong command line, 130 after Ctrl-C. */
async function main(args: string[]): Promise<number> {
  const options = {
    only: { type: "string", multiple: true },
    json: { type: "string" },
    help: { type: "boolean" },
  } as const;
  let given;
  try {
    given = parseArgs({ args, options }).values;
    const unknown = given.only?.find((name) => !Object.hasOwn(BENCHMARKS, name));
    if (unknown !== undefined) throw new TypeError(`--only: there is no ${unknown}`);
  } catch (error) {
    process.stderr.write(`${reasonOf(error)}\n\n${USAGE}`);
    return 2;
  }
  if (given.help) {
    process.stdout.write(USAGE);
    return 0;
  }
  const missing = unbuilt();
  if (missing.length > 0) {
    process.stderr.write(`${missing.join(", ")}: not built; run npm run build\n`);
    return 1;
  }
  const { rows, exitCode } = await measure(given.only ?? Object.keys(BENCHMARKS), stopSignal());
  if (rows.length > 0) process.stdout.write(`\n${table(rows)}`);
  if (given.json !== undefined) writeFileSync(given.json, `${JSON.stringify(rows, undefined, 2)}\n`);
  return exitCode || (rows.some(({ target }) => target?.met === false) ? 1 : 0);
}

/** A signal that Ctrl-C, SIGTERM or an uncaught error aborts, so that everything is removed after each of these. */
function stopSignal(): AbortSignal {
  const stop = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => stop.abort(INTERRUPTED));
  for (const event of ["uncaughtException", "unhandledRejection"] as const)
    process.on(event, (error: unknown) => stop.abort(error));
  return stop.signal;
}

/** Runs the named benchmarks one after the other. When one fails, that is printed, and the others go on. */
async function measure(names: readonly string[], stop: AbortSignal): Promise<{ rows: Row[]; exitCode: number }> {
  const rows: Row[] = [];
  let exitCode = 0;
  const fail = (error: unknown): void => {
    exitCode = error === INTERRUPTED ? 130 : 1;
    process.stderr.write(`${error === INTERRUPTED ? "interrupted" : `FAILED: ${inspect(error)}`}\n`);
  };
  const stopped = new Promise<never>((_resolve, reject) => {
    stop.addEventListener("abort", () => reject(stop.reason), { once: true });
  });
  stopped.catch(() => {});
  try {
    await using bench = await openBench();
    process.stdout.write(
      `Node ${process.versions.node}, Linux ${release()}, ${cpus().length} × ${cpus()[0]?.model.trim()}\n`,
    );
    process.stdout.write(`${bench.host}\n`);
    for (const [name, benchmark] of Object.entries(BENCHMARKS)) {
      if (!names.includes(name)) continue;
      stop.throwIfAborted();
      const beganMs = performance.now();
      process.stderr.write(`${name} … `);
      const running = benchmark(bench);
      running.catch(() => {}); // an interrupted benchmark fails when what it uses is removed
      try {
        rows.push(...(await Promise.race([running, stopped])));
        process.stderr.write(`${((performance.now() - beganMs) / 1000).toFixed(1)} s\n`);
      } catch (error) {
        if (stop.aborted) throw error;
        fail(error);
      }
    }
  } catch (error) {
    fail(error);
  }
  return { rows, exitCode };
}
