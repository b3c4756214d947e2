import { ClientError } from "../../src/client/errors.ts";
import { commandLine, environment } from "../line/bytes.ts";
import { UsageError } from "../line/parse.ts";
import { type Given, parse, type Program } from "../line/program.ts";
import { EXIT } from "../tell/exit.ts";
import { sayError } from "../tell/output.ts";
import { allGiven } from "./config.ts";
import { flags } from "./settings.ts";

/**
 * `jobsd`: resolves to the exit code; a start that fails says why in one line on stderr.
 *
 * @param root the directory that holds build/ and the program
 */
export async function main(root: string, version: string): Promise<number> {
  try {
    const parsed = parse(program(root, version), commandLine());
    return parsed ? await parsed.command.run(parsed.given) : EXIT.ok;
  } catch (error) {
    sayError(error, "jobsd");
    return error instanceof UsageError || error instanceof ClientError ? EXIT.unavailable : EXIT.failed;
  }
}

/** The program: what it understands, for whoever runs it, or describes it to people and shells. */
export function program(root: string, version: string): Program {
  return {
    name: "jobsd",
    version,
    flags: [],
    commands: [
      {
        name: "",
        about: [
          "Runs jobs on this machine for clients with certificates. Each flag can be set as JOBSD_FLAG, as in JOBSD_LOG_LIMIT.",
          "SIGTERM ends the daemon; jobs go on, and the next one on the same state directory has them again.",
          "SIGHUP has it take its configuration and its certificates anew, and open its audit log anew; it ends nothing.",
          "--check exits with 0 when nothing is missing, 1 when jobs lack something, 125 when no daemon could start.",
        ],
        flags,
        examples: ["--listen 0.0.0.0:7443 --state /var/lib/jobs --ca ca.crt --cert worker.crt --key worker.key"],
        run: async (line) => {
          let file: string | undefined;
          const read = async (): Promise<Given> => {
            const given = await allGiven(line, environment(), flags, file);
            file = given.text("config");
            return given;
          };
          const given = await read();
          if (given.on("check")) return (await import("./check.ts")).check(given, root);
          if (given.on("recover")) return (await import("./recover.ts")).recover(given);
          return (await import("./serve.ts")).serveUntilSignal({ given, read, root, version });
        },
      },
    ],
  };
}
