import { QueryResponse } from "../../proto/generated/jobs/v1/worker.ts";
import { ClientError } from "../../src/client/errors.ts";
import { withClient } from "./with-client.ts";
import { EXIT } from "../tell/exit.ts";
import { formatJob } from "../tell/format.ts";
import { print, printAnswers, sayError } from "../tell/output.ts";
import type { Given } from "../line/program.ts";

const TIMEOUT_MS = 30_000;

/** `jobsctl query [flags] ID…`: all that is known of a job. */
export async function query(given: Given): Promise<number> {
  const json = given.text("output") === "json";
  return withClient(given, async (client) => {
    const answers: QueryResponse[] = [];
    let failure: unknown;
    for (const id of given.operands) {
      try {
        const answer = await client.query(id, { timeoutMs: TIMEOUT_MS });
        if (!json && answer.job) await print([...(answers.length > 0 ? [""] : []), ...formatJob(answer.job)]);
        answers.push(answer);
      } catch (error) {
        // A job that is not there keeps none of the others from being shown.
        if (!(error instanceof ClientError && error.code === "NOT_FOUND")) throw error;
        if (failure !== undefined) sayError(failure);
        failure = error;
      }
    }
    if (json)
      await printAnswers(
        "QueryResponse",
        answers.map((answer) => QueryResponse.encode(answer)),
        given.operands,
      );
    if (failure !== undefined) throw failure;
    return EXIT.ok;
  });
}
