import { fork } from "node:child_process";
import { once } from "node:events";
import { connect, type Credentials } from "../src/client/index.ts";
import { MAX_CALLS } from "../src/server/limits.ts";
import { type Bench, checkout, credentialsOf, type Daemon, node } from "./harness.ts";
import { rssKib } from "./proc.ts";
import { quantile, row, type Row } from "./report.ts";

const LISTS = 200;
const WARM = 10;
const MOST_MS = 1000;
const SILENT_PER_S = 2000;
const CALLS = MAX_CALLS / 2;
const OUTPUT = ["-c", "head -c 50000000 /dev/zero; exec sleep 600"];

/** The message to crowd-client.ts: how many silent connections to make a second, or how many calls at once. */
export interface CrowdOrder {
  readonly kind: "silent" | "greedy";
  readonly count: number;
  readonly credentials: Credentials;
  readonly jobId: string;
}

/** Each list is made by a new client, as the CLI does: connection, handshake and call. */
async function listMs(credentials: Credentials, count: number): Promise<number[]> {
  const found: number[] = [];
  for (let i = 0; i < count; i++) {
    const beganMs = performance.now();
    using client = connect(credentials);
    await client.list();
    found.push(performance.now() - beganMs);
  }
  return found;
}

async function crowded(bench: Bench, order: CrowdOrder): Promise<AsyncDisposable> {
  const child = bench.adopt(
    fork(checkout("bench/crowd-client.ts"), { execPath: node(), execArgv: [], serialization: "advanced" }),
  );
  child.send(order);
  await once(child, "message");
  return {
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await once(child, "exit");
    },
  };
}

/** Measures a writer's lists beside strangers who connect and stay silent, and beside a reader who uses all that it may. */
export async function crowd(bench: Bench): Promise<Row[]> {
  await using daemon = await bench.startDaemon();
  const { jobId } = await daemon.client.start({ command: "sh", args: OUTPUT });
  await listMs(daemon.credentials, WARM);
  const alone = quantile(await listMs(daemon.credentials, LISTS), 0.99);
  const beside = async (order: Pick<CrowdOrder, "kind" | "count">, name: string): Promise<Row> => {
    const reader = credentialsOf(daemon.credentials.server, bench.pem, "reader");
    await using _crowd = await crowded(bench, { ...order, credentials: reader, jobId });
    const p99 = quantile(await listMs(daemon.credentials, LISTS), 0.99);
    const target = { text: `under ${MOST_MS} ms`, met: p99 < MOST_MS };
    return row(name, p99, "ms", ["alone", alone], target);
  };
  const silent = await beside(
    { kind: "silent", count: SILENT_PER_S },
    `List by a new client beside ${SILENT_PER_S} silent connections a second, 99th percentile`,
  );
  const before = rssKib(daemon.pid);
  const greedy = await beside({ kind: "greedy", count: CALLS }, `… beside a reader with ${CALLS} calls`);
  return [silent, greedy, memoryOf(daemon, before)];
}

function memoryOf({ pid }: Daemon, before: number): Row {
  return row("… the daemon's memory then (RSS)", rssKib(pid) / 1024, "MiB", ["before", before / 1024]);
}
