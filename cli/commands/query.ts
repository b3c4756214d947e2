import { QueryResponse } from "../../proto/generated/jobs/v1/worker.ts";
import { withClient } from "../connection.ts";
import { EXIT } from "../exit.ts";
import { formatJob } from "../format.ts";
import { print, printJson } from "../output.ts";
import type { Given } from "../program.ts";

const TIMEOUT_MS = 30_000;

/** `jobs query [flags] ID…`: all that is known of a job. */
export async function query(given: Given): Promise<number> {
  return withClient(given, async (client) => {
    for (const [index, id] of given.operands.entries()) {
      const answer = await client.query(id, { timeoutMs: TIMEOUT_MS });
      if (given.text("output") === "json") await printJson(QueryResponse.toJSON(answer));
      else if (answer.job) await print(`${index > 0 ? "\n" : ""}${formatJob(answer.job)}`);
    }
    return EXIT.ok;
  });
}
