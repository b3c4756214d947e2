import { spawn } from "node:child_process";
import { connect, type Client } from "../src/client/index.ts";
import { address, credentialsOf, node, type Bench } from "./harness.ts";
import { median, row, type Row } from "./report.ts";

const BYTES = 2 ** 30;
const MESSAGE_BYTES = 256 * 1024;
const RUNS = 3;
const LEAST = 0.8;

/** Reads a stream to its end. Resolves to the rate in MB/s. Throws when there were not exactly `BYTES`. */
async function rate(client: Client, jobId: string): Promise<number> {
  const beganMs = performance.now();
  let bytes = 0;
  for await (const message of client.stream({ jobId })) bytes += message.output.length;
  if (bytes !== BYTES) throw new Error(`${bytes} bytes came, not ${BYTES}`);
  return bytes / 1000 / (performance.now() - beganMs);
}

/** Measures 1 GiB that is already on disk to one client, by turns with a bare grpc-js server on the same terms. */
export async function stream(bench: Bench): Promise<Row[]> {
  await using daemon = await bench.startDaemon({ flags: ["--log-limit", "2G"] });
  const { jobId } = await daemon.client.start({ command: "head", args: ["-c", String(BYTES), "/dev/zero"] });
  await daemon.client.wait(jobId);
  const pem = ["ca.crt", "worker.crt", "worker.key"].map(bench.pem);
  const server = [
    new URL("bare-server.ts", import.meta.url).pathname,
    ...pem,
    `${BYTES / MESSAGE_BYTES}`,
    `${MESSAGE_BYTES}`,
  ];
  const child = bench.adopt(spawn(node(), server, { stdio: ["ignore", "pipe", "inherit"] }));
  try {
    using bare = connect(
      credentialsOf(await address(child, () => "the bare server did not start"), bench.pem, "writer"),
    );
    const [ours, floor]: [number[], number[]] = [[], []];
    for (let run = 0; run < RUNS; run++) {
      floor.push(await rate(bare, jobId));
      ours.push(await rate(daemon.client, jobId));
    }
    const target = { text: `at least ${LEAST}`, met: median(ours) >= LEAST * median(floor) };
    return [
      row("Stream of 1 GiB on disk, one client", median(ours), "MB/s", ["bare grpc-js server", median(floor)], target),
    ];
  } finally {
    child.kill();
  }
}
