import { execFile, fork } from "node:child_process";
import { on } from "node:events";
import { statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { Source } from "../proto/generated/jobs/v1/worker.ts";
import type { Credentials } from "../src/client/index.ts";
import { node, type Bench, type Daemon } from "./harness.ts";
import { cpuMs, parentOf, rssKib } from "./proc.ts";
import { format, row, type Row } from "./report.ts";

const ALONE_MS = 2500;
const FLOOD_MS = 5000;
const FOLLOWERS = 1000;
const PROCESSES = 4;
/** Followers of each process. */
const CONNECTIONS = 5;
const SAMPLE_MS = 20;
/** Half of what two idle processors give. */
const LEAST_MB_PER_S = 500;
const MOST_KIB = 512;
/** What the daemon may grow by, from compiled code and garbage, however much a job writes that nobody follows. */
export const MOST_GROWN_KIB = 16 * 1024;

export const LOG_BYTES = 2 * 2 ** 20;
/** The most that a log takes on disk beyond its limit: the last block of each of its files, and an extent. */
export const BLOCKS_BYTES = 4 * 4096;

/** The message to flood-client.ts. */
export interface FloodOrder {
  readonly credentials: Credentials;
  readonly jobId: string;
  readonly connections: number;
  readonly followers: number;
}

/** What one of its followers received: bytes, bytes that were told as missing, ends, and messages out of order. */
export interface Followed {
  readonly bytes: number;
  readonly missing: number;
  readonly ends: number;
  readonly faults: number;
}

/** The result of a flood. */
export interface Flooded {
  readonly mbPerS: number;
  /** All bytes of the job's output, also those that were not kept. */
  readonly size: number;
  /** CPU time of the job's supervisor. */
  readonly cpuMs: number;
  /** The most room that the log took on disk. */
  readonly diskBytes: number;
  /** The daemon's memory before the followers came, while they waited, and at most. */
  readonly memoryKib: { readonly before: number; readonly waiting: number; readonly most: number };
}

/** Followers in a process of their own. */
interface Group {
  readonly pid: number;
  /** Resolves when each follower has its first bytes. */
  readonly joined: Promise<unknown>;
  /** Resolves when each stream has ended. */
  readonly followed: Promise<readonly Followed[]>;
}

function startGroup(bench: Bench, order: FloodOrder): Group {
  const path = join(import.meta.dirname, "flood-client.ts");
  const child = bench.adopt(fork(path, { execPath: node(), execArgv: [], serialization: "advanced" }));
  const messages = on(child, "message", { close: ["exit"] });
  child.send(order);
  async function next(): Promise<readonly Followed[]> {
    const { value, done } = await messages.next();
    if (done === true) throw new Error("a followers' process ended early");
    const [sent = []]: Followed[][] = value;
    return sent;
  }
  const joined = next();
  async function toTheEnd(): Promise<readonly Followed[]> {
    await joined;
    return next();
  }
  const followed = toTheEnd();
  followed.catch(() => {}); // it is awaited later
  return { pid: child.pid ?? 0, joined, followed };
}

/** Throws unless each of `count` followers received every byte once, or was told that it is missing, and one end. */
function check(followed: readonly Followed[], count: number, size: number): void {
  const wrong = followed.filter(
    ({ bytes, missing, ends, faults }) => bytes + missing !== size || ends !== 1 || faults > 0,
  );
  if (wrong.length > 0 || followed.length !== count)
    throw new Error(
      `of ${count} followers of ${size} bytes ${followed.length} came back, and ${wrong.length} were wrong: ${JSON.stringify(wrong.slice(0, 3))}`,
    );
}

/** Samples until disposed; `most` is the greatest value that `measure` returned. */
function most(measure: () => number): Disposable & { readonly value: number } {
  let value = measure();
  const timer = setInterval(() => {
    try {
      value = Math.max(value, measure());
    } catch {
      // The process that is measured has ended.
    }
  }, SAMPLE_MS);
  return {
    get value() {
      return value;
    },
    [Symbol.dispose]: () => clearInterval(timer),
  };
}

/** The two figures at the end of flood.c's stderr: bytes and ns. */
async function told({ client }: Daemon, jobId: string): Promise<number> {
  const sources = [Source.SOURCE_STDERR];
  let text = "";
  for await (const { output } of client.stream({ jobId, sources })) text += Buffer.from(output).toString();
  const [bytes = 0, ns = 0] = text.split(" ").map(Number);
  return (bytes / ns) * 1000;
}

/**
 * Runs a job that writes as fast as it can for `ms`, with many followers in several processes, and one more follower whose
 * process is stopped all the time. Throws when a follower did not receive what it should.
 */
export async function flooded(
  bench: Bench,
  daemon: Daemon,
  {
    program,
    ms,
    followers = 0,
    processes = 1,
  }: { program: string; ms: number; followers?: number; processes?: number },
): Promise<Flooded> {
  const { client, credentials, state, pid } = daemon;
  const gate = join(bench.directory, `gate-${crypto.randomUUID()}`);
  const { jobId, pid: jobPid } = await client.start({ command: program, args: [String(ms), gate] });
  const supervisor = parentOf(jobPid);
  const files = ["output", "index"].map((name) => join(state, "jobs", jobId, name));
  const before = rssKib(pid);
  const order = { credentials, jobId, connections: CONNECTIONS, followers: followers / processes };
  const groups = followers === 0 ? [] : Array.from({ length: processes }, () => startGroup(bench, order));
  const stopped = followers === 0 ? undefined : startGroup(bench, { ...order, connections: 1, followers: 1 });
  await Promise.all([...groups, ...(stopped ? [stopped] : [])].map(({ joined }) => joined));
  const waiting = rssKib(pid);
  using memory = most(() => rssKib(pid));
  using disk = most(() => files.reduce((sum, file) => sum + statSync(file).blocks * 512, 0));
  using cpu = most(() => cpuMs(supervisor));
  if (stopped) process.kill(stopped.pid, "SIGSTOP");
  writeFileSync(gate, "");
  const { job } = await client.wait(jobId);
  const size = Number(job?.output?.size);
  check((await Promise.all(groups.map((group) => group.followed))).flat(), followers, size);
  if (stopped) {
    process.kill(stopped.pid, "SIGCONT");
    check(await stopped.followed, 1, size);
  }
  return {
    mbPerS: await told(daemon, jobId),
    size,
    cpuMs: cpu.value,
    diskBytes: disk.value,
    memoryKib: { before, waiting, most: memory.value },
  };
}

/** Measures a job that floods: beside a pipe that is read and thrown away, and with 1,000 followers beside with none. */
export async function flood(bench: Bench): Promise<Row[]> {
  const program = await bench.compile("flood");
  await using daemon = await bench.startDaemon({ flags: ["--log-limit", String(LOG_BYTES)] });
  const { stderr } = await promisify(execFile)(program, [String(ALONE_MS)]);
  const [floorBytes = 0, floorNs = 0, readerNs = 0] = stderr.trim().split(/\s/).map(Number);
  const alone = await flooded(bench, daemon, { program, ms: ALONE_MS });
  const many = await flooded(bench, daemon, { program, ms: FLOOD_MS, followers: FOLLOWERS, processes: PROCESSES });
  const cpuPerGb = (flow: Flooded): number => flow.cpuMs / (flow.size / 1e9);
  const { before, waiting, most: mostKib } = many.memoryKib;
  const eachKib = (mostKib - before) / FOLLOWERS;
  const diskKib = Math.max(alone.diskBytes, many.diskBytes) / 1024;
  const limitKib = LOG_BYTES / 1024;
  const followers = `${FOLLOWERS} followers`;
  return [
    row(
      "Flood: a job's output, kept",
      alone.mbPerS,
      "MB/s",
      ["pipe, read and forgotten", (floorBytes / floorNs) * 1000],
      {
        text: `at least ${LEAST_MB_PER_S} MB/s`,
        met: alone.mbPerS >= LEAST_MB_PER_S,
      },
    ),
    row("… its supervisor's CPU", cpuPerGb(alone), "ms/GB", [
      "that pipe's reader",
      readerNs / 1e6 / (floorBytes / 1e9),
    ]),
    row(
      "… the daemon's memory meanwhile (RSS), at most",
      alone.memoryKib.most / 1024,
      "MiB",
      ["before", alone.memoryKib.before / 1024],
      {
        text: `at most ${MOST_GROWN_KIB / 1024} MiB more`,
        met: alone.memoryKib.most - alone.memoryKib.before <= MOST_GROWN_KIB,
      },
    ),
    row(`… with ${followers}`, many.mbPerS, "MB/s", ["without", alone.mbPerS]),
    row("… its log on disk, at most", diskKib, "KiB", ["limit", limitKib], {
      text: `within its limit, and blocks of ${format(BLOCKS_BYTES / 1024)} KiB`,
      met: diskKib * 1024 <= LOG_BYTES + BLOCKS_BYTES,
    }),
    row(
      `Daemon's memory per follower of a flood, at most, at ${FOLLOWERS}`,
      eachKib,
      "KiB",
      ["while they wait for it", (waiting - before) / FOLLOWERS],
      { text: `bounded: under ${MOST_KIB} KiB`, met: eachKib < MOST_KIB },
    ),
  ];
}
