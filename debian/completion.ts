import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Command, Flag, Program } from "../cli/line/program.ts";

const LOGIC = readFileSync(join(import.meta.dirname, "files/completion.bash"), "utf8");
/** Stands for the program itself, since bash's tables have no empty key. */
const ITSELF = ".";

/**
 * Returns what completes a program's command line in bash: commands, the flags of the one that is given, the words that a
 * flag takes, files, ids of jobs, and a job's own command.
 */
export function bashCompletion({ name, flags, commands }: Program): string {
  const flagsOf = new Map([[ITSELF, names(flags)]]);
  const following = new Map<string, string>();
  const add = (command: string, word: string): void =>
    void following.set(command, [following.get(command), word].filter(Boolean).join(" "));
  for (const command of commands) {
    for (const word of [command.name, command.alias].filter((word) => word !== undefined)) {
      const [first = "", second] = word.split(" ");
      flagsOf.set(word || ITSELF, names(command.offline ? command.flags : [...command.flags, ...flags]));
      if (second !== undefined) add(first, second);
      if (second === undefined || following.get(first) === second) add(ITSELF, first);
      add(word || ITSELF, operandOf(command));
    }
  }
  const values = [...flags, ...commands.flatMap((command) => command.flags)].flatMap(({ name: flag, short, value }) =>
    value === undefined ? [] : [`--${flag}`, short && `-${short}`].map((word) => [word, wordsOf(value)] as const),
  );
  const tables = { flags: flagsOf, commands: following, values: new Map(values) };
  const declarations = Object.entries(tables).map(([table, entries]) => {
    const lines = [...entries].filter(([key]) => key).map(([key, value]) => `\t["${key}"]="${value}"`);
    return `declare -A _${name}_${table}=(\n${lines.join("\n")}\n)`;
  });
  return LOGIC.replaceAll("PROGRAM", name).replace("TABLES", () => declarations.join("\n"));
}

function names(flags: readonly Flag[]): string {
  return [...flags.map(({ name }) => `--${name}`), "--help"].join(" ");
}

/** The words of `text|json`; FILE for a file or a directory; nothing for what only its user knows. */
function wordsOf(value: string): string {
  if (/^[a-z0-9]+(\|[a-z0-9]+)+$/.test(value)) return value.replaceAll("|", " ");
  return /FILE|DIR/.test(value) ? "FILE" : "";
}

function operandOf({ operands = "" }: Command): string {
  if (operands.startsWith("<id")) return "ID";
  return /^<(csr|file)/.test(operands) ? "FILE" : "";
}
