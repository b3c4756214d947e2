import { Ending, PruneResponse } from "../../proto/generated/jobs/v1/worker.ts";
import { withClient } from "./with-client.ts";
import { EXIT } from "../tell/exit.ts";
import { count } from "../tell/format.ts";
import { print, printMessage, printOver, say, terminalWidth } from "../tell/output.ts";
import { parseDurationMs, parseLabels, parseWord, toDuration, UsageError } from "../line/parse.ts";
import { type Given, optional } from "../line/program.ts";

const ENDINGS = {
  exited: Ending.ENDING_EXITED,
  signalled: Ending.ENDING_SIGNALLED,
  stopped: Ending.ENDING_STOPPED,
  "timed-out": Ending.ENDING_TIMED_OUT,
  "out-of-memory": Ending.ENDING_OUT_OF_MEMORY,
  lost: Ending.ENDING_LOST,
} as const;
const WORDS = ["exited", "signalled", "stopped", "timed-out", "out-of-memory", "lost"] as const;
const ALIVE: ReadonlySet<string> = new Set(["starting", "running", "stopping"]);

/** `jobsctl prune [flags]`: removes jobs that have ended. Prints how many, with --dry-run which they are. */
export async function prune(given: Given): Promise<number> {
  const json = given.text("output") === "json";
  const dryRun = given.on("dry-run");
  const request = { ...conditions(given), archived: given.on("with-archive"), dryRun };
  return withClient(given, async (client) => {
    const jobIds: string[] = [];
    let removed = 0;
    for await (const some of client.prune(request)) {
      removed += some.jobIds.length;
      if (json) jobIds.push(...some.jobIds);
      else if (dryRun) await print(some.jobIds);
      else if (terminalWidth !== undefined) await printOver(`${count(removed, "job")} removed`, false);
    }
    if (json) await printMessage("PruneResponse", PruneResponse.encode({ jobIds }));
    else if (dryRun) say(`${count(removed, "job")} would be removed`);
    else if (terminalWidth === undefined) await print([`${count(removed, "job")} removed`]);
    else await printOver(`${count(removed, "job")} removed`, true);
    return EXIT.ok;
  });
}

/** Throws UsageError, also where no flag says which jobs. */
function conditions(given: Given) {
  const olderThanMs = optional(given, "older-than", parseDurationMs);
  const words = given.list("state").flatMap((text) => text.split(","));
  const alive = words.find((word) => ALIVE.has(word));
  if (alive !== undefined)
    throw new UsageError(`--state ${alive}: only jobs that have ended are removed; jobsctl stop ends one`);
  const ended = words.includes("ended");
  const endings = words.filter((word) => word !== "ended").map((word) => ENDINGS[parseWord("--state", word, WORDS)]);
  const labels = parseLabels("--label", given.list("label"));
  if (olderThanMs === undefined && words.length === 0 && labels.size === 0)
    throw new UsageError(
      "prune: nothing says which jobs: give --older-than, --state or --label; --older-than 0s is all",
    );
  return {
    labels,
    endings: ended ? Object.values(ENDINGS) : endings,
    ...(olderThanMs !== undefined && { olderThan: toDuration(olderThanMs) }),
  };
}
