import { spawn, spawnSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type Go, openGo, type Server } from "./go.ts";
import { type Bench, checkout } from "./harness.ts";
import { cpuMs, parentOf, pssKib, rssKib } from "./proc.ts";
import { format, median, quantile, row, type Row } from "./report.ts";

const ROUNDS = 6;
const WARM_UP = 200;
const STARTS = 50;
const QUERIES = 200;
const SPINNING_PROCESSES = 8;
const FLIGHT = 32;
const FLIGHT_JOBS = 640;
const LINES = 150;
const STREAM_BYTES = 2 ** 30;
const COPY_BYTES = 2 ** 26;
const COPIES = 20;
const STREAM_ROUNDS = 3;
const SLEEPING = 100;
const SPIN = { command: "sh", args: ["-c", "while :; do :; done"] };

/** jobsd and the bare server, measured by turns with one client. */
interface Pair {
  readonly go: Go;
  readonly ours: Server;
  readonly bare: Server;
}

type Figures = readonly [ours: number[], bare: number[]];
/** `most` or `least`: what the ratio to the bare server may be. */
type Goal = { readonly most: number } | { readonly least: number };

/** Measures what jobsd takes beside a bare job server in Go, both driven by a client in Go. */
export async function peer(bench: Bench): Promise<Row[]> {
  const go = await openGo(bench);
  if (!go) return [{ ...row("Beside a bare server in Go", 0, "", ["not built: no go here", 0]), value: null }];
  await using ours = await startOurs(bench);
  await using bare = await go.startBare();
  const pair = { go, ours, bare };
  for (const server of [ours, bare]) await go.measure(server, "start", WARM_UP);
  const clock = await bench.compile("clock");
  const rows: Row[] = [...idle(pair)];
  rows.push(compared("Start, median", median, "ms", await byTurns(pair, ROUNDS, "start", STARTS), { most: 1.3 }));
  for (const [count, goal] of [[2, { most: 1.5 }], [4]] as const) rows.push(...(await busy(pair, count, goal)));
  rows.push(await crowdedQuery(pair, bench));
  rows.push(...(await inFlight(pair)));
  const lines = await byTurns(pair, 2, "follow", clock, LINES);
  rows.push(compared("From a job's write to a follower, median", median, "ms", lines, { most: 1.3 }));
  rows.push(compared("… 99th percentile", p99, "ms", lines, { most: 2 }));
  rows.push(...(await streams(pair)), await readiness(bench, go), await wholeClient(bench, pair));
  return [...rows, await sleeping(pair)];
}

async function startOurs(bench: Bench): Promise<Server> {
  const name = `peer-${++groups}`;
  const daemon = await bench.startDaemon({ ownGroup: name, flags: ["--log-limit", "2G"] });
  return {
    pid: daemon.pid,
    address: daemon.credentials.server,
    client: daemon.client,
    group: bench.group && join(bench.group, name),
    [Symbol.asyncDispose]: () => daemon[Symbol.asyncDispose](),
  };
}
let groups = 0;

const p99 = (values: readonly number[]): number => quantile(values, 0.99);

function compared(
  name: string,
  of: (values: readonly number[]) => number,
  unit: string,
  [ours, bare]: Figures,
  goal?: Goal,
): Row {
  const made = row(name, of(ours), unit, ["bare Go server", of(bare)]);
  if (!goal || made.ratio === null) return made;
  const [text, met] =
    "most" in goal
      ? [`at most ${goal.most} of it`, made.ratio <= goal.most]
      : [`at least ${goal.least} of it`, made.ratio >= goal.least];
  return { ...made, target: { text, met } };
}

async function byTurns({ go, ours, bare }: Pair, rounds: number, ...mode: (string | number)[]): Promise<Figures> {
  const found: Figures = [[], []];
  for (let round = 0; round < rounds; round++) {
    found[0].push(...(await go.measure(ours, ...mode)));
    found[1].push(...(await go.measure(bare, ...mode)));
  }
  return found;
}

/** Starts beside `count` jobs of the same server that spin. */
async function busy(pair: Pair, count: number, goal?: Goal): Promise<Row[]> {
  const found: Figures = [[], []];
  for (let round = 0; round < ROUNDS; round++)
    for (const [which, server] of [pair.ours, pair.bare].entries()) {
      const started = await Promise.all(Array.from({ length: count }, () => server.client.start(SPIN)));
      found[which]?.push(...(await pair.go.measure(server, "start", STARTS)));
      for (const { jobId } of started) await server.client.stop({ jobId, grace: { seconds: 0n, nanos: 0 } });
    }
  const name = `Start beside ${count} jobs that spin`;
  return [
    compared(`${name}, median`, median, "ms", found, goal),
    compared("… 99th percentile", p99, "ms", found, goal),
  ];
}

async function crowdedQuery(pair: Pair, bench: Bench): Promise<Row> {
  const spinning = Array.from({ length: SPINNING_PROCESSES }, () =>
    bench.adopt(spawn(SPIN.command, SPIN.args, { detached: true, stdio: "ignore" })),
  );
  try {
    const found = await byTurns(pair, ROUNDS, "query", QUERIES);
    return compared(`Query beside ${SPINNING_PROCESSES} spinning processes, median`, median, "ms", found, { most: 3 });
  } finally {
    for (const each of spinning) each.kill("SIGKILL");
  }
}

/** Jobs a second, and the CPU time that each cost the server: cpu.stat of its group has that of its jobs, too. */
async function inFlight(pair: Pair): Promise<Row[]> {
  const rates: Figures = [[], []];
  const costs: Figures = [[], []];
  const kinds: [daemon: number[], supervisors: number[], jobs: number[]] = [[], [], []];
  for (let round = 0; round < STREAM_ROUNDS; round++)
    for (const [which, server] of [pair.ours, pair.bare].entries()) {
      const before = spent(server);
      rates[which]?.push(...(await pair.go.measure(server, "flight", FLIGHT_JOBS, FLIGHT)));
      const [all, own, daemon] = spent(server).map((ms, at) => (ms - (before[at] ?? 0)) / FLIGHT_JOBS);
      costs[which]?.push(all ?? 0);
      if (which === 0)
        [daemon, (own ?? 0) - (daemon ?? 0), (all ?? 0) - (own ?? 0)].forEach((ms, at) => kinds[at]?.push(ms ?? 0));
    }
  const rows = [compared(`Jobs started and ended, ${FLIGHT} in flight`, median, "jobs/s", rates, { least: 0.6 })];
  if (pair.ours.group === "") return rows;
  const cost = median(costs[0]);
  return [
    ...rows,
    compared("… the server's CPU time a job", median, "ms", costs, { most: 1.6 }),
    ...["daemon", "supervisors and spawner", "jobs"].map((kind, at) =>
      row(`… of which ${kind}`, median(kinds[at] ?? []), "ms", ["all of it", cost]),
    ),
  ];
}

/** CPU time in ms: of a server and its jobs, of the server's processes, of its main process. */
function spent({ group, pid }: Server): [all: number, own: number, main: number] {
  if (group === "") return [0, 0, 0];
  const usage = (of: string): number =>
    Number(/^usage_usec (\d+)$/m.exec(readFileSync(join(of, "cpu.stat"), "utf8"))?.[1]) / 1000;
  return [usage(group), usage(join(group, "server")), cpuMs(pid)];
}

async function streams(pair: Pair): Promise<Row[]> {
  const rows: Row[] = [];
  for (const [bytes, clients] of [
    [STREAM_BYTES, 1],
    [COPY_BYTES, COPIES],
  ] as const) {
    const found: Figures = [[], []];
    const servers = await Promise.all(
      [pair.ours, pair.bare].map(async (server) => {
        const { jobId } = await server.client.start({ command: "head", args: ["-c", String(bytes), "/dev/zero"] });
        await server.client.wait(jobId);
        return { server, jobId };
      }),
    );
    for (let round = 0; round < STREAM_ROUNDS; round++)
      for (const [which, { server, jobId }] of servers.entries())
        found[which]?.push(...(await pair.go.measure(server, "stream", jobId, clients)));
    const name = `Stream of ${bytes / 2 ** 20} MiB to ${clients === 1 ? "one client" : `${clients} clients`}`;
    rows.push(compared(name, median, "MB/s", found, { least: 1.15 }));
  }
  return rows;
}

/** From the spawn of a server until it has answered a call over mutual TLS. */
async function readiness(bench: Bench, go: Go): Promise<Row> {
  const found: Figures = [[], []];
  for (let round = 0; round < ROUNDS; round++)
    for (const [which, start] of [() => startOurs(bench), () => go.startBare()].entries()) {
      const beganMs = performance.now();
      await using server = await start();
      await go.measure(server, "answer");
      found[which]?.push(performance.now() - beganMs);
    }
  return compared("From a server's spawn to its first answer, median", median, "ms", found, { most: 3 });
}

/** `jobsctl run -- true`, the whole process, beside a client in Go that does the same with the bare server. */
async function wholeClient(bench: Bench, { go, ours, bare }: Pair): Promise<Row> {
  const env = {
    PATH: process.env["PATH"],
    JOBS_SERVER: ours.address,
    JOBS_CA: bench.pem("ca.crt"),
    JOBS_CERT: bench.pem("writer.crt"),
    JOBS_KEY: bench.pem("writer.key"),
  };
  const found: Figures = [[], []];
  for (let run = 0; run < 2 * ROUNDS; run++) {
    const beganMs = performance.now();
    const { status } = spawnSync(checkout("bin/jobsctl"), ["run", "--", "true"], { env, stdio: "ignore" });
    if (status !== 0) throw new Error(`jobsctl run -- true exited with ${status}`);
    found[0].push(performance.now() - beganMs);
    const bareMs = performance.now();
    await go.measure(bare, "start", 1);
    found[1].push(performance.now() - bareMs);
  }
  return compared("jobsctl run -- true, the whole client, median", median, "ms", found);
}

function idle({ ours, bare }: Pair): Row[] {
  const helpers = childrenOf(ours.pid).reduce((sum, pid) => sum + pssKib(pid), 0);
  return [
    compared("Memory of an idle server (RSS)", median, "MiB", [[rssKib(ours.pid) / 1024], [rssKib(bare.pid) / 1024]]),
    row("… of its spawner and spares (PSS)", helpers / 1024, "MiB", ["daemon", rssKib(ours.pid) / 1024]),
  ];
}

function childrenOf(pid: number): number[] {
  return readdirSync(`/proc/${pid}/task`).flatMap((task) => {
    const children = readFileSync(`/proc/${pid}/task/${task}/children`, "utf8").trim();
    return children === ""
      ? []
      : children.split(" ").flatMap((child) => [Number(child)].concat(childrenOf(Number(child))));
  });
}

/** What a job that sleeps adds to a server: the server's own memory, and its helper's. */
async function sleeping({ ours, bare }: Pair): Promise<Row> {
  const found: Figures = [[], []];
  for (const [which, server] of [ours, bare].entries()) {
    const before = pssKib(server.pid);
    const pids: number[] = [];
    for (let i = 0; i < SLEEPING; i++) pids.push((await server.client.start({ command: "sleep", args: ["600"] })).pid);
    const helpers = pids.map(parentOf).filter((parent) => parent !== server.pid);
    const helped = helpers.reduce((sum, pid) => sum + pssKib(pid), 0);
    found[which]?.push((pssKib(server.pid) - before + helped) / SLEEPING);
  }
  const made = compared("Memory of a sleeping job, server and helper (PSS)", median, "KiB", found);
  return {
    ...made,
    target: { text: `at most 80 KiB (it is ${format(made.value ?? 0)})`, met: (made.value ?? 0) <= 80 },
  };
}
