import { fork, type ForkOptions } from "node:child_process";
import { on } from "node:events";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { Client, Credentials } from "../src/client/index.ts";
import { node, type Bench } from "./harness.ts";
import { row, type Row } from "./report.ts";

const BYTES = 256 * 2 ** 20;
const CLIENTS = 20;
/** Each group of clients is one process: two groups join before the job writes, one while it writes, one after its end. */
const GROUPS = { early: 4, alsoEarly: 4, during: 6, after: 6 };
const DURING = 0.25;
const POLL_MS = 5;

/** A script that waits for the gate, then writes random bytes to stdout, and their SHA-256 to stderr. */
const SCRIPT = `echo ready >&2
until [ -e "$1" ]; do sleep 0.01; done
{ head -c "$2" /dev/urandom | tee /dev/fd/3 | sha256sum >&2; } 3>&1`;

/** The message to copies-client.ts. */
export interface Order {
  readonly credentials: Credentials;
  readonly jobId: string;
  readonly clients: number;
}

/** What one of its clients received: the SHA-256 of stdout, stderr, and the bytes that were missing. */
export interface Copy {
  readonly sha256: string;
  readonly stderr: string;
  readonly bytes: number;
  readonly missing: number;
}

/** Clients in a process of their own, which join when they are told to. */
interface Group {
  /** Resolves when each client has its first bytes. */
  join(jobId: string): Promise<void>;
  copies(): Promise<Copy[]>;
}

function startGroup(bench: Bench, credentials: Credentials, clients: number): Group {
  const options: ForkOptions = { execPath: node(), execArgv: [], serialization: "advanced" };
  const child = bench.adopt(fork(join(import.meta.dirname, "copies-client.ts"), options));
  const messages = on(child, "message", { close: ["exit"] });
  async function next(): Promise<Copy[]> {
    const { value, done } = await messages.next();
    if (done === true) throw new Error("a client's process ended early");
    const [sent = []]: Copy[][] = value;
    return sent;
  }
  return {
    async join(jobId) {
      child.send({ credentials, jobId, clients } satisfies Order);
      await next(); // a message without content
    },
    copies: next,
  };
}

/** Resolves when the job has written the share `DURING` of its output. */
async function underWay(client: Client, jobId: string): Promise<void> {
  for (;;) {
    const { exited, job } = await client.query(jobId);
    if (exited || Number(job?.output?.size ?? 0) > DURING * BYTES) return;
    await delay(POLL_MS);
  }
}

/** Throws when a copy differs from what the job says that it wrote. */
function check(copies: readonly Copy[]): void {
  for (const [i, { sha256, stderr, bytes, missing }] of copies.entries()) {
    const written = /\b[0-9a-f]{64}\b/.exec(stderr)?.[0];
    if (sha256 !== written || bytes !== BYTES || missing !== 0)
      throw new Error(
        `client ${i} got ${bytes} bytes with SHA-256 ${sha256} and ${missing} missing; the job wrote ${BYTES} with ${written}`,
      );
  }
  if (copies.length !== CLIENTS) throw new Error(`${copies.length} copies came, not ${CLIENTS}`);
}

/** Measures 256 MiB of random bytes to 20 clients at once, which join before, during and after the run. Checks every copy. */
export async function copies(bench: Bench): Promise<Row[]> {
  await using daemon = await bench.startDaemon({ flags: ["--log-limit", "1G"] });
  const { client, credentials } = daemon;
  const group = (clients: number): Group => startGroup(bench, credentials, clients);
  const early = [group(GROUPS.early), group(GROUPS.alsoEarly)];
  const during = group(GROUPS.during);
  const after = group(GROUPS.after);
  const alone = group(1);
  const gate = join(bench.directory, "gate");
  const args = ["-c", SCRIPT, "sh", gate, String(BYTES)];
  const { jobId } = await client.start({ command: "sh", args, timeLimit: { seconds: 600n, nanos: 0 } });
  await Promise.all(early.map((each) => each.join(jobId)));

  const beganMs = performance.now();
  writeFileSync(gate, "");
  await underWay(client, jobId);
  await during.join(jobId);
  await client.wait(jobId);
  await after.join(jobId);
  const all = (await Promise.all([...early, during, after].map((each) => each.copies()))).flat();
  const mbPerS = (CLIENTS * BYTES) / 1000 / (performance.now() - beganMs);
  check(all);

  const aloneBeganMs = performance.now();
  await alone.join(jobId);
  await alone.copies();
  const aloneMbPerS = BYTES / 1000 / (performance.now() - aloneBeganMs);
  const target = { text: `${all.length} of ${CLIENTS} identical to what the job wrote`, met: true };
  return [
    row(
      `256 MiB to ${CLIENTS} clients at once, together`,
      mbPerS,
      "MB/s",
      ["one client after them", aloneMbPerS],
      target,
    ),
  ];
}
