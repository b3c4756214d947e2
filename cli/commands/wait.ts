import { WaitResponse } from "../../proto/generated/jobs/v1/worker.ts";
import { retrying } from "../../src/client/resume.ts";
import { withClient } from "./with-client.ts";
import { EXIT, exitCodeOfJob } from "../tell/exit.ts";
import { describeEnd } from "../tell/format.ts";
import { checkJob, riding } from "../tell/outage.ts";
import { print, printAnswers } from "../tell/output.ts";
import type { Given } from "../line/program.ts";

/** `jobsctl wait ID…`: until all have ended; exits with the code of the first of them that did not exit with 0. */
export async function wait(given: Given): Promise<number> {
  const json = given.text("output") === "json";
  return withClient(given, async (client) => {
    for (const id of given.operands) await checkJob(client, id);
    const answers: WaitResponse[] = [];
    let exitCode: number = EXIT.ok;
    for (const id of given.operands) {
      const answer = await retrying(client, () => client.wait(id), riding(client));
      answers.push(answer);
      if (!json && answer.job) await print([`${id} ${describeEnd(answer.job).words}`]);
      exitCode ||= answer.job ? exitCodeOfJob(answer.job) : EXIT.unavailable;
    }
    if (json)
      await printAnswers(
        "WaitResponse",
        answers.map((answer) => WaitResponse.encode(answer)),
        given.operands,
      );
    return exitCode;
  });
}
