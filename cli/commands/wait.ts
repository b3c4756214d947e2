import { WaitResponse } from "../../proto/generated/jobs/v1/worker.ts";
import { retrying } from "../../src/client/resume.ts";
import { withClient } from "../connection.ts";
import { EXIT, exitCodeOfJob } from "../exit.ts";
import { describeEnd } from "../format.ts";
import { riding } from "../outage.ts";
import { print, printJson } from "../output.ts";
import type { Given } from "../program.ts";

const TIMEOUT_MS = 30_000;

/** `jobs wait ID…`: until all have ended; exits with the code of the first of them that did not exit with 0. */
export async function wait(given: Given): Promise<number> {
  return withClient(given, async (client) => {
    // What is wrong from the start must not be taken for a connection that broke.
    for (const id of given.operands)
      await retrying(client, () => client.query(id, { timeoutMs: TIMEOUT_MS }), riding(client));
    let exitCode: number = EXIT.ok;
    for (const id of given.operands) {
      const answer = await retrying(client, () => client.wait(id), riding(client));
      if (given.text("output") === "json") await printJson(WaitResponse.toJSON(answer));
      else if (answer.job) await print(`${id} ${describeEnd(answer.job).words}\n`);
      exitCode ||= answer.job ? exitCodeOfJob(answer.job) : EXIT.unavailable;
    }
    return exitCode;
  });
}
