/** Followers of a flood, in a process that flood.ts starts and sends a FloodOrder. */
import { once } from "node:events";
import { Source, type StreamResponse } from "../proto/generated/jobs/v1/worker.ts";
import { connect, type Client } from "../src/client/index.ts";
import type { FloodOrder, Followed } from "./flood.ts";

const PAGE = 4096;

/** Whether the first whole page in a message begins with its own offset, as flood.c writes it. */
function isRight({ output, offset, source }: StreamResponse): boolean {
  const at = (PAGE - (Number(offset) % PAGE)) % PAGE;
  return (
    source !== Source.SOURCE_STDOUT ||
    at + 8 > output.length ||
    Buffer.from(output).readBigUInt64LE(at) === offset + BigInt(at)
  );
}

async function follow(client: Client, jobId: string, joined: () => void): Promise<Followed> {
  let next = 0n;
  let [bytes, missing, ends, faults] = [0, 0, 0, 0];
  for await (const message of client.stream({ jobId, follow: true })) {
    joined();
    const { output, offset, gap, end } = message;
    if (offset !== next || ends > 0 || !isRight(message)) faults++;
    next = offset + BigInt(output.length) + gap;
    bytes += output.length;
    missing += Number(gap);
    if (end) ends++;
  }
  return { bytes, missing, ends, faults };
}

const [order]: FloodOrder[] = await once(process, "message");
if (!order) throw new Error("no order came");
const { credentials, jobId, connections, followers } = order;
const clients = Array.from({ length: connections }, () => connect(credentials));
const began = Array.from({ length: followers }, () => Promise.withResolvers<void>());
const following = Promise.all(
  clients.flatMap((client, i) =>
    began.filter((_, each) => each % connections === i).map(({ resolve }) => follow(client, jobId, resolve)),
  ),
);
await Promise.race([Promise.all(began.map(({ promise }) => promise)), following]);
process.send?.("joined");
const followed = await following;
for (const client of clients) client.close();
process.send?.(followed, () => process.disconnect?.());
