import { type Job, ListResponse, State } from "../../proto/generated/jobs/v1/worker.ts";
import { withClient } from "./with-client.ts";
import { EXIT } from "../tell/exit.ts";
import { formatTable } from "../tell/format.ts";
import { print, printMessage } from "../tell/output.ts";
import { parseCount, parseEnum, parseLabels } from "../line/parse.ts";
import type { Given } from "../line/program.ts";

const TIMEOUT_MS = 30_000;
const DEFAULT_LIMIT = 100;
/** The number of jobs that a worker returns at most in one answer. */
const PAGE = 1000;

/** `jobsctl list [flags]`: a job a line, newest first. */
export async function list(given: Given): Promise<number> {
  const words = given.list("state").flatMap((text) => text.split(","));
  const states = words.map((word) => parseEnum("--state", word, "STATE", State));
  const labels = parseLabels("--label", given.list("label"));
  const limitText = given.text("limit");
  const limit = limitText === undefined ? DEFAULT_LIMIT : Number(parseCount("--limit", limitText)) || Infinity;
  return withClient(given, async (client) => {
    const jobs: Job[] = [];
    let pageToken = "";
    do {
      const request = { states, labels, limit: Math.min(PAGE, limit - jobs.length), pageToken };
      const page = await client.list(request, { timeoutMs: TIMEOUT_MS });
      jobs.push(...page.jobs);
      pageToken = page.nextPageToken;
    } while (pageToken !== "" && jobs.length < limit);
    if (given.text("output") === "json")
      await printMessage("ListResponse", ListResponse.encode({ jobs, nextPageToken: pageToken }));
    else if (given.on("quiet")) await print(jobs.map(({ id }) => id));
    else await print(formatTable(jobs));
    return EXIT.ok;
  });
}
