import { RemoveResponse } from "../../proto/generated/jobs/v1/worker.ts";
import { withClient } from "./with-client.ts";
import { EXIT } from "../tell/exit.ts";
import { print, printAnswers, sayError } from "../tell/output.ts";
import type { Given } from "../line/program.ts";

const TIMEOUT_MS = 60_000;

/** `jobsctl rm [flags] ID…`: prints each id once the job is gone. */
export async function remove(given: Given): Promise<number> {
  const json = given.text("output") === "json";
  const archived = given.on("with-archive");
  return withClient(given, async (client) => {
    const removed: RemoveResponse[] = [];
    const failures: unknown[] = [];
    for (const jobId of given.operands) {
      try {
        removed.push(await client.remove({ jobId, archived }, { timeoutMs: TIMEOUT_MS }));
        if (!json) await print([jobId]);
      } catch (error) {
        // A job that cannot be removed keeps none of the others.
        failures.push(error);
      }
    }
    if (json)
      await printAnswers(
        "RemoveResponse",
        removed.map((answer) => RemoveResponse.encode(answer)),
        given.operands,
      );
    for (const failure of failures.slice(1)) sayError(failure);
    if (failures.length > 0) throw failures[0];
    return EXIT.ok;
  });
}
