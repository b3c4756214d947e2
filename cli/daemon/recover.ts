import { type Recovered, recoverJournal } from "../../src/worker/index.ts";
import { EXIT } from "../tell/exit.ts";
import { count } from "../tell/format.ts";
import { print, printJson } from "../tell/output.ts";
import { UsageError } from "../line/parse.ts";
import type { Given } from "../line/program.ts";

/** `jobsd --recover`: the journal made anew. Resolves to the exit code. */
export async function recover(given: Given): Promise<number> {
  const stateDir = given.text("state");
  if (!stateDir) throw new UsageError("no --state: name the state directory, or set JOBSD_STATE");
  const recovered = recoverJournal(stateDir);
  if (given.on("json")) await printJson(recovered);
  else await print(describe(recovered));
  return EXIT.ok;
}

function describe(recovered: Recovered): string[] {
  const { aside, jobs, ended, running, lost, salvaged, nameless, unstarted, unreadable, unread } = recovered;
  return [
    `the journal has been made anew: ${count(jobs, "job")}`,
    `  ended    ${ended}`,
    `  running  ${running}${running > 0 ? ", which the next jobsd takes up" : ""}`,
    ...(lost > 0 ? [`  lost     ${lost}, of which the next jobsd tells what became`] : []),
    `  from the old journal ${salvaged}, from directories ${jobs - salvaged}`,
    ...(unread > 0 ? [`${count(unread, "row")} of the old journal could not be read`] : []),
    ...named(nameless, "of which command, owner and request id are not known"),
    ...named(unreadable, "whose directories cannot be read; they are left as they are"),
    ...named(unstarted, "whose directories tell of no start; the next jobsd removes them"),
    aside === undefined ? "there was no journal before" : `the old journal is kept: ${aside}`,
  ];
}

function named(ids: readonly string[], what: string): string[] {
  return ids.length > 0 ? [`${count(ids.length, "job")} ${what}:`, ...ids.map((id) => `  ${id}`)] : [];
}
