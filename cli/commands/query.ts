import { QueryResponse } from "../../proto/generated/jobs/v1/worker.ts";
import { ClientError } from "../../src/client/errors.ts";
import { withClient } from "../connection.ts";
import { EXIT } from "../exit.ts";
import { formatJob } from "../format.ts";
import { print, printMessage, sayError } from "../output.ts";
import type { Given } from "../program.ts";

const TIMEOUT_MS = 30_000;

/** `jobs query [flags] ID…`: all that is known of a job. */
export async function query(given: Given): Promise<number> {
  return withClient(given, async (client) => {
    let shown = 0;
    let failure: unknown;
    for (const id of given.operands) {
      try {
        const answer = await client.query(id, { timeoutMs: TIMEOUT_MS });
        if (given.text("output") === "json") await printMessage("QueryResponse", QueryResponse.encode(answer));
        else if (answer.job) await print([...(shown++ > 0 ? [""] : []), ...formatJob(answer.job)]);
      } catch (error) {
        // A job that is not there keeps none of the others from being shown.
        if (!(error instanceof ClientError && error.code === "NOT_FOUND")) throw error;
        if (failure !== undefined) sayError(failure);
        failure = error;
      }
    }
    if (failure !== undefined) throw failure;
    return EXIT.ok;
  });
}
