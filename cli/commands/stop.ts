import { StopResponse } from "../../proto/generated/jobs/v1/worker.ts";
import { retrying } from "../../src/client/resume.ts";
import { withClient } from "./with-client.ts";
import { EXIT } from "../tell/exit.ts";
import { count, describeEnd } from "../tell/format.ts";
import { riding } from "../tell/outage.ts";
import { print, printAnswers, say, sayError } from "../tell/output.ts";
import { parseDurationMs, parseSignal, toDuration } from "../line/parse.ts";
import type { Given } from "../line/program.ts";

const DEFAULT_GRACE_MS = 10_000;
/** After the grace period: even SIGKILL takes a moment for a large tree. */
const MARGIN_MS = 60_000;

/** `jobsctl stop [flags] ID…`: prints each id once nothing of the job runs any more. */
export async function stop(given: Given): Promise<number> {
  const json = given.text("output") === "json";
  const signalText = given.text("signal");
  const graceText = given.text("grace");
  const graceMs = graceText === undefined ? DEFAULT_GRACE_MS : parseDurationMs("--grace", graceText);
  const how = {
    ...(signalText !== undefined && { signal: parseSignal("--signal", signalText) }),
    grace: toDuration(graceMs),
  };
  return withClient(given, async (client) => {
    const timeoutMs = graceMs + MARGIN_MS;
    const answers = await Promise.allSettled(
      given.operands.map((jobId, index) =>
        // All calls meet the same outage; the first one tells of it.
        retrying(client, () => client.stop({ jobId, ...how }, { timeoutMs }), riding(client, { quiet: index > 0 })),
      ),
    );
    for (const [index, answer] of answers.entries()) {
      if (answer.status === "rejected") continue;
      const { job, killed } = answer.value;
      const id = given.operands[index] ?? "";
      if (!json) await print([id]);
      const forced = killed > 0 ? `; ${count(killed, "process", "es")} had to be killed` : "";
      if (job) say(`job ${id}: ${describeEnd(job).words}${forced}`);
    }
    const stopped = answers.flatMap((answer) => (answer.status === "fulfilled" ? [answer.value] : []));
    if (json)
      await printAnswers(
        "StopResponse",
        stopped.map((answer) => StopResponse.encode(answer)),
        given.operands,
      );
    const failures = answers.flatMap((answer) => (answer.status === "rejected" ? [answer.reason] : []));
    for (const failure of failures.slice(1)) sayError(failure);
    if (failures.length > 0) throw failures[0];
    return EXIT.ok;
  });
}
