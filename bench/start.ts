import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { type HealthCheckResponse, HealthClient } from "../proto/generated/grpc/health/v1/health.ts";
import {
  Network,
  StartRequest,
  type StartResponse,
  type WaitResponse,
  WorkerServiceClient,
} from "../proto/generated/jobs/v1/worker.ts";
import { unary } from "../src/client/calls.ts";
import type { Credentials } from "../src/client/index.ts";
import { channelFor, formatTarget, parseTarget, secureContext } from "../src/client/target.ts";
import { SWITCHES } from "../src/worker/index.ts";
import type { Bench, DaemonOptions } from "./harness.ts";
import { format, median, row, type Row } from "./report.ts";

const ROUNDS = 20;
const STARTS_PER_ROUND = 15;
const WARM_UP = 200;
const SETTLING = 3;
const HEAP_MB = 500;
const FLIGHT = 32;
const FLIGHT_ROUNDS = 3;
const JOBS_PER_ROUND = 640;
/** What a start may cost above a call: so many ms, or on a slow machine so many times the kernel's own part. */
const MOST_ABOVE_MS = 1;
const MOST_FLOORS = 3;
const MOST_WORSE = 1.1;
const MOST_ISOLATION_MS = 0.4;
const MOST_NETWORK_MS = 1.5;
const TRUE = StartRequest.fromPartial({ command: "/bin/true" });
const ALONE = StartRequest.fromPartial({ command: "/bin/true", network: Network.NETWORK_NONE });

/** Calls of the client library, and Check of the health service, all on one channel. */
export interface Calls extends Disposable {
  readonly start: (request?: StartRequest) => Promise<StartResponse>;
  readonly wait: (jobId: string) => Promise<WaitResponse>;
  readonly check: () => Promise<HealthCheckResponse>;
}

export function callsOn(credentials: Credentials): Calls {
  const target = parseTarget(credentials.server);
  const channel = channelFor(secureContext(credentials), target);
  const worker = new WorkerServiceClient(formatTarget(target), channel.credentials, channel.options);
  const health = new HealthClient(formatTarget(target), channel.credentials, { channelOverride: worker.getChannel() });
  const unwatched = () => () => undefined;
  return {
    start: (request = TRUE) => unary((done) => worker.start(request, done), undefined, unwatched),
    wait: (jobId) => unary((done) => worker.wait({ jobId }, done), undefined, unwatched),
    check: () => unary((done) => health.check({ service: "" }, done), undefined, unwatched),
    [Symbol.dispose]: () => worker.close(),
  };
}

async function timed<T>(into: number[], call: () => Promise<T>): Promise<T> {
  const beganMs = performance.now();
  const answer = await call();
  into.push(performance.now() - beganMs);
  return answer;
}

/** Times one empty call and one start, each right after another call, and then waits for the job's end. */
async function oneOfEach(calls: Calls, checks: number[], starts: number[], request?: StartRequest): Promise<void> {
  await calls.check();
  await timed(checks, calls.check);
  const { jobId } = await timed(starts, () => calls.start(request));
  await calls.wait(jobId);
}

/** Runs bench/floor.c: microseconds of each start, or starts per second with several in flight. */
async function floor(program: string, bench: Bench, count: number, flight: number): Promise<number[]> {
  const child = promisify(execFile)(program, [bench.group, String(count), String(flight)]);
  bench.adopt(child.child);
  return (await child).stdout.trim().split("\n").map(Number);
}

/** Measures starts, one at a time, each right after an empty call. */
export async function start(bench: Bench): Promise<Row[]> {
  const program = await bench.compile("floor");
  await using daemon = await bench.startDaemon();
  using calls = callsOn(daemon.credentials);
  for (let i = 0; i < WARM_UP; i++) await oneOfEach(calls, [], []);
  const [checksMs, startsMs, floorMs]: [number[], number[], number[]] = [[], [], []];
  for (let round = 0; round < ROUNDS; round++) {
    floorMs.push(...(await floor(program, bench, STARTS_PER_ROUND, 1)).map((us) => us / 1000));
    for (let i = 0; i < STARTS_PER_ROUND; i++) await oneOfEach(calls, checksMs, startsMs);
  }
  const aboveMs = median(startsMs) - median(checksMs);
  const mostMs = Math.max(MOST_ABOVE_MS, MOST_FLOORS * median(floorMs));
  const above = { text: `at most ${format(mostMs)} ms above (it is ${format(aboveMs)} ms)`, met: aboveMs <= mostMs };
  const call = ["empty unary call on the same channel", median(checksMs)] as const;
  return [
    row("Start of /bin/true, median", median(startsMs), "ms", call, above),
    row("… above the empty call", aboveMs, "ms", ["C floor: mkdir, fork, clone3, until exec", median(floorMs)]),
  ];
}

/** Measures starts in a plain daemon and in one with 500 MB of live heap, by turns. */
export async function heap(bench: Bench): Promise<Row[]> {
  const msOf = await turnByTurn(bench, { without: {}, full: { preload: { heapMb: HEAP_MB } } });
  const target = { text: `at most ${MOST_WORSE.toFixed(2)}`, met: msOf("full") <= MOST_WORSE * msOf("without") };
  const name = `Start with ${HEAP_MB} MB of heap in the daemon`;
  return [row(name, msOf("full"), "ms", ["without", msOf("without")], target)];
}

/** Measures starts in a daemon that is watched and shared by owners with quotas, and in a plain one, by turns. */
export async function watched(bench: Bench): Promise<Row[]> {
  const flags = ["--metrics", "127.0.0.1:0", "--owners", "private", "--quota", "jobs=1000,max-time-limit=1h"];
  const msOf = await turnByTurn(bench, { plain: {}, watched: { flags } });
  const target = { text: `at most ${MOST_WORSE.toFixed(2)}`, met: msOf("watched") <= MOST_WORSE * msOf("plain") };
  const name = "Start with metrics, private owners and quotas";
  return [row(name, msOf("watched"), "ms", ["without", msOf("plain")], target)];
}

/** Measures starts with all isolation, with none, and with all isolation and no network, by turns. */
export async function isolation(bench: Bench): Promise<Row[]> {
  const off = { flags: ["--isolation-off", SWITCHES.join(",")] };
  const msOf = await turnByTurn(bench, { on: {}, off, alone: { request: ALONE } });
  return (
    [
      ["Start with all isolation, above none", "on", MOST_ISOLATION_MS],
      // The kernel makes the network namespace, in a time that depends on the machine.
      ["… and with no network", "alone", Math.max(MOST_NETWORK_MS, msOf("off"))],
    ] as const
  ).map(([name, which, most]) => {
    const aboveMs = msOf(which) - msOf("off");
    const text = `at most ${most.toFixed(1)} ms above (it is ${format(aboveMs)} ms)`;
    return row(name, aboveMs, "ms", ["Start without isolation", msOf("off")], { text, met: aboveMs <= most });
  });
}

/** Measures starts in several daemons by turns. Resolves to the median in ms for each name. */
async function turnByTurn<Name extends string>(
  bench: Bench,
  daemons: Readonly<Record<Name, DaemonOptions & { readonly request?: StartRequest }>>,
): Promise<(name: Name) => number> {
  await using stack = new AsyncDisposableStack();
  const turns: {
    readonly name: string;
    readonly calls: Calls;
    readonly request: StartRequest;
    readonly ms: number[];
  }[] = [];
  for (const [name, { request = TRUE, ...options }] of Object.entries<DaemonOptions & { request?: StartRequest }>(
    daemons,
  )) {
    const daemon = stack.use(await bench.startDaemon(options));
    turns.push({ name, calls: stack.use(callsOn(daemon.credentials)), request, ms: [] });
  }
  for (let round = -ROUNDS / 2; round < ROUNDS; round++) {
    for (const { calls, request, ms } of turns)
      // The first few starts settle what the turn before has left to clean up.
      for (let i = -SETTLING; i < STARTS_PER_ROUND; i++)
        await oneOfEach(calls, [], round < 0 || i < 0 ? [] : ms, request);
  }
  return (name) => median(turns.flatMap((turn) => (turn.name === name ? turn.ms : [])));
}

/** Starts and waits for the ends of `count` jobs, `FLIGHT` at once. Returns jobs per second. */
export async function manyAtOnce(calls: Calls, count: number): Promise<number> {
  const beganMs = performance.now();
  let left = count;
  await Promise.all(
    Array.from({ length: FLIGHT }, async () => {
      while (left-- > 0) await calls.wait((await calls.start()).jobId);
    }),
  );
  return (count / (performance.now() - beganMs)) * 1000;
}

/** Measures jobs per second from start to end with 32 in flight, by turns with the floor. */
export async function flight(bench: Bench): Promise<Row[]> {
  const program = await bench.compile("floor");
  await using daemon = await bench.startDaemon();
  using calls = callsOn(daemon.credentials);
  await manyAtOnce(calls, JOBS_PER_ROUND / 2);
  const [floors, jobs]: [number[], number[]] = [[], []];
  for (let round = 0; round < FLIGHT_ROUNDS; round++) {
    floors.push(...(await floor(program, bench, JOBS_PER_ROUND, FLIGHT)));
    jobs.push(await manyAtOnce(calls, JOBS_PER_ROUND));
  }
  const name = `Jobs started and ended, ${FLIGHT} in flight`;
  return [row(name, median(jobs), "jobs/s", [`C floor, ${FLIGHT} in flight`, median(floors)])];
}
