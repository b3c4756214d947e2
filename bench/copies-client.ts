/** Clients that each read a job's whole output, in a process that copies.ts starts and sends an Order. */
import { createHash } from "node:crypto";
import { once } from "node:events";
import { Source } from "../proto/generated/jobs/v1/worker.ts";
import { connect } from "../src/client/index.ts";
import type { Copy, Order } from "./copies.ts";

async function copy({ credentials, jobId }: Order, joined: () => void): Promise<Copy> {
  using client = connect(credentials);
  const hash = createHash("sha256");
  let [stderr, bytes, missing] = ["", 0, 0];
  for await (const { output, source, gap } of client.stream({ jobId, follow: true })) {
    joined();
    missing += Number(gap);
    if (source === Source.SOURCE_STDERR) stderr += Buffer.from(output).toString();
    if (source !== Source.SOURCE_STDOUT) continue;
    hash.update(output);
    bytes += output.length;
  }
  return { sha256: hash.digest("hex"), stderr, bytes, missing };
}

const [order]: Order[] = await once(process, "message");
if (!order) throw new Error("no order came");
const began = Array.from({ length: order.clients }, () => Promise.withResolvers<void>());
const copying = Promise.all(began.map(({ resolve }) => copy(order, resolve)));
await Promise.race([Promise.all(began.map(({ promise }) => promise)), copying]);
process.send?.("joined");
const copies = await copying;
process.send?.(copies, () => process.disconnect?.());
