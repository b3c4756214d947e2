/** Clients that take all they can get from a daemon, in a process that crowd.ts starts and sends a CrowdOrder. */
import { once } from "node:events";
import { connect as connectTcp } from "node:net";
import { connect } from "../src/client/index.ts";
import { parseTarget } from "../src/client/target.ts";
import type { CrowdOrder } from "./crowd.ts";

const TICK_MS = 10;
const CALLS_PER_CONNECTION = 256;
const BUSY_CALLS = 64;

/** Makes connections at a rate, each silent until it is closed. */
function silent({ credentials }: CrowdOrder, perSecond: number): void {
  const { host, port } = parseTarget(credentials.server);
  let opened = 0;
  const beganMs = performance.now();
  setInterval(() => {
    for (; opened < ((performance.now() - beganMs) / 1000) * perSecond; opened++)
      connectTcp(port, host)
        .on("error", () => {})
        .resume();
  }, TICK_MS);
}

/** Opens nearly as many streams and samples as one client may have, and reads none; the remaining calls ask without a pause. */
async function greedy({ credentials, jobId }: CrowdOrder, calls: number): Promise<void> {
  const begun: Promise<unknown>[] = [];
  for (let left = calls - BUSY_CALLS; left > 0; left -= CALLS_PER_CONNECTION) {
    const client = connect(credentials);
    for (let i = 0; i < Math.min(left, CALLS_PER_CONNECTION); i++) {
      const messages = i % 4 === 0 ? client.stats({ jobId }) : client.stream({ jobId, follow: true });
      begun.push(messages.next().catch(() => {}));
    }
  }
  await Promise.all(begun);
  const client = connect(credentials);
  for (let i = 0; i < BUSY_CALLS; i++)
    void (async () => {
      for (;;) await client.list({ limit: 1000 }).catch(() => {});
    })();
}

const [order]: CrowdOrder[] = await once(process, "message");
if (!order) throw new Error("no order came");
process.once("disconnect", () => process.exit());
if (order.kind === "silent") silent(order, order.count);
else await greedy(order, order.count);
process.send?.("there");
