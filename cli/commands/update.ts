import { UpdateResponse } from "../../proto/generated/jobs/v1/worker.ts";
import { withClient } from "./with-client.ts";
import { EXIT } from "../tell/exit.ts";
import { formatLimits } from "../tell/format.ts";
import { print, printMessage, say } from "../tell/output.ts";
import { UsageError } from "../line/parse.ts";
import type { Given } from "../line/program.ts";
import { resources } from "../line/resources.ts";

/** The worker's kernel first reclaims the memory above a lowered limit, which takes time. */
const TIMEOUT_MS = 5 * 60_000;

/** `jobsctl update [flags] ID`: prints the id, and tells the limits that the job then has. */
export async function update(given: Given): Promise<number> {
  const [jobId = ""] = given.operands;
  const asked = resources(given);
  if (!asked) throw new UsageError("nothing to change; give a limit, as in jobsctl update --memory 256M ID");
  return withClient(given, async (client) => {
    const answer = await client.update({ jobId, resources: asked }, { timeoutMs: TIMEOUT_MS });
    if (given.text("output") === "json") await printMessage("UpdateResponse", UpdateResponse.encode(answer));
    else await print([jobId]);
    if (answer.job) say(`job ${jobId}: ${formatLimits(answer.job)}`);
    return EXIT.ok;
  });
}
