import { spawn } from "node:child_process";
import { setTimeout as delay } from "node:timers/promises";
import type { Client } from "../src/client/index.ts";
import type { Bench } from "./harness.ts";
import { cpuMs } from "./proc.ts";
import { format, median, quantile, row, type Row } from "./report.ts";

const LINES = 250;
const MOST_MS = 5;
const FOLLOWERS = 1000;
const SPREAD_JOBS = 100;
const CPU_WINDOW_MS = 5000;
const SETTLE_MS = 1000;
const MOST_CPU_MS_PER_S = 1;
const TIME_LIMIT = { seconds: 600n, nanos: 0 };

/** Milliseconds from the time that clock.c wrote into each line until now. */
function agesMs(lines: Uint8Array): number[] {
  const now = process.hrtime.bigint();
  return Buffer.from(lines)
    .toString()
    .trim()
    .split("\n")
    .map((line) => Number(now - BigInt(line)) / 1e6);
}

/** Measures the time from a job's write until the client has it, beside a child process whose pipe this process reads. */
export async function latency(bench: Bench): Promise<Row[]> {
  const clock = await bench.compile("clock");
  await using daemon = await bench.startDaemon();
  const { jobId } = await daemon.client.start({ command: clock, args: [String(LINES)] });
  const [followed, piped]: [number[], number[]] = [[], []];
  for await (const { output } of daemon.client.stream({ jobId, follow: true }))
    if (output.length > 0) followed.push(...agesMs(output));
  const child = bench.adopt(spawn(clock, [String(LINES)], { stdio: ["ignore", "pipe", "inherit"] }));
  for await (const lines of child.stdout) if (lines instanceof Buffer) piped.push(...agesMs(lines));
  if (followed.length !== LINES) throw new Error(`${followed.length} lines came, not ${LINES}`);
  const name = "From a job's write to the follower's hands";
  const target = { text: `under ${MOST_MS} ms`, met: median(followed) < MOST_MS };
  return [
    row(`${name}, median`, median(followed), "ms", ["pipe of a child process", median(piped)], target),
    row(`${name}, 99th percentile`, quantile(followed, 0.99), "ms", ["pipe", quantile(piped, 0.99)]),
  ];
}

/** Starts `count` jobs that write a line and then wait. Resolves to their ids. */
export async function waitingJobs(client: Client, count: number): Promise<string[]> {
  const script = { command: "sh", args: ["-c", "echo ready; exec sleep 600"], timeLimit: TIME_LIMIT };
  const ids: string[] = [];
  let left = count;
  const more = async (): Promise<void> => {
    while (left-- > 0) ids.push(await client.start(script).then(({ jobId }) => jobId));
  };
  await Promise.all(Array.from({ length: Math.min(count, 16) }, more));
  return ids;
}

/** Follows each job. Resolves when each follower has the job's first line and waits. Disposing ends the followers. */
export async function followers(client: Client, jobIds: readonly string[]): Promise<AsyncDisposable> {
  const leave = new AbortController();
  const reading: Promise<unknown>[] = [];
  await Promise.all(
    jobIds.map(async (jobId) => {
      const messages = client.stream({ jobId, follow: true }, { signal: leave.signal });
      await messages.next();
      reading.push(messages.next().catch(() => {})); // disposing cancels it
    }),
  );
  return {
    async [Symbol.asyncDispose]() {
      leave.abort();
      await Promise.all(reading);
    },
  };
}

/** CPU time in ms per second of a process that has nothing to do. */
async function idleCpu(pid: number): Promise<number> {
  await delay(SETTLE_MS);
  const [beganMs, before] = [performance.now(), cpuMs(pid)];
  await delay(CPU_WINDOW_MS);
  return ((cpuMs(pid) - before) / (performance.now() - beganMs)) * 1000;
}

/** Measures the daemon's CPU time with 1,000 followers that receive nothing: of one job, and of 100 jobs. */
export async function idle(bench: Bench): Promise<Row[]> {
  await using daemon = await bench.startDaemon();
  const jobs = await waitingJobs(daemon.client, SPREAD_JOBS);
  const without = await idleCpu(daemon.pid);
  const rows: Row[] = [];
  for (const spread of [1, SPREAD_JOBS]) {
    const followed = Array.from({ length: FOLLOWERS }, (_, i) => jobs[i % spread] ?? "");
    await using _following = await followers(daemon.client, followed);
    const withThem = await idleCpu(daemon.pid);
    const above = withThem - without;
    const text = `none to speak of: at most ${MOST_CPU_MS_PER_S} ms/s above (it is ${format(above)})`;
    const name = `Daemon's CPU, ${FOLLOWERS} idle followers of ${spread === 1 ? "one job" : `${spread} jobs`}`;
    rows.push(row(name, withThem, "ms/s", ["without followers", without], { text, met: above <= MOST_CPU_MS_PER_S }));
  }
  return rows;
}
