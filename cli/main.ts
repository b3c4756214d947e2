import { jobsctl, output } from "./jobsctl.ts";
import { commandLine } from "./line/bytes.ts";
import { keepIgnored } from "./line/caller.ts";
import { parseWord } from "./line/parse.ts";
import { parse } from "./line/program.ts";
import { EXIT } from "./tell/exit.ts";
import { finish, replaceNodes } from "./tell/output.ts";

/* Runs `jobsctl`. */
replaceNodes();
keepIgnored();
const { name, run } = understand(commandLine());
void finish(name, run);

/** Returns what a command line asks for, as a function. */
function understand(argv: readonly string[]): { name: string; run: () => Promise<number> } {
  try {
    const parsed = parse(jobsctl, argv);
    // Help and version are written already.
    if (!parsed) return { name: "", run: () => Promise.resolve(EXIT.ok) };
    const { command, given } = parsed;
    if (command.flags.includes(output)) parseWord("--output", given.text("output") ?? "text", ["text", "json"]);
    return { name: command.name, run: () => command.run(given) };
  } catch (error) {
    return { name: "", run: () => Promise.reject(error) };
  }
}
