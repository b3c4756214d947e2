import sade, { type Sade } from "sade";
import { utf8 } from "./bytes.ts";
import { UsageError } from "./parse.ts";

/** `--name VALUE`, or on and off where it has no `value`. */
export interface Flag {
  readonly name: string;
  /** One letter. */
  readonly short?: string;
  /** What stands for the value in the help. */
  readonly value?: string;
  /** The value may be any bytes, which bytes.ts has in text; elsewhere it is UTF-8. */
  readonly bytes?: boolean;
  readonly about: string;
}

export interface Command {
  /** One or two words. */
  readonly name: string;
  readonly alias?: string;
  /** As sade has them: `<id...>`; sade's help shows them. */
  readonly operands?: string;
  readonly about: readonly string[];
  readonly flags: readonly Flag[];
  readonly examples?: readonly string[];
  /** What stands after `--` is its own. */
  readonly takesCommand?: boolean;
  /** It talks to no worker: it does not have the program's flags. */
  readonly offline?: boolean;
  /** Resolves to the exit code. */
  readonly run: (given: Given) => Promise<number>;
}

/** A command line that was understood. */
export interface Given {
  readonly command: string;
  readonly operands: readonly string[];
  /** The words after `--`. */
  readonly words: readonly string[];
  /** The last value of a flag; undefined when it was not given. */
  text(flag: string): string | undefined;
  /** All values of a flag. */
  list(flag: string): readonly string[];
  on(flag: string): boolean;
}

export interface Program {
  readonly name: string;
  readonly version: string;
  /** For every command but those offline, and allowed in front of it. */
  readonly flags: readonly Flag[];
  /** One without a name makes a program that has no commands. */
  readonly commands: readonly Command[];
}

/**
 * Understands a command line (without node and script). Undefined when it asked for help or the version, which are
 * then on stdout. Throws UsageError.
 */
export function parse(program: Program, argv: readonly string[]): { command: Command; given: Given } | undefined {
  const end = argv.indexOf("--");
  const words = end < 0 ? [...argv] : argv.slice(0, end);
  const { command, rest } = find(program, words);
  const tree = build(program);
  if (!command) {
    tree.parse(["", program.name, ...rest]);
    return undefined;
  }
  const flags = flagsOf(program, command);
  // sade ends the process where an operand is missing: the last word is there to be it, and is taken away again.
  const joined = withDashes(rest, flags);
  const line = ["", program.name, ...nameWords(command), ...joined.map((_, at) => plain(joined, at, flags)), "--", "."];
  const parsed: { readonly args: readonly unknown[] } | undefined = tree.parse(line, {
    lazy: true,
    string: flags.filter(({ value }) => value !== undefined).flatMap(names),
    boolean: flags.filter(({ value }) => value === undefined).flatMap(names),
    unknown: (word) => unknownFlag(word, program, command, flags),
  });
  const args = parsed?.args ?? [];
  const values = args.at(-1);
  if (!isRecord(values)) return undefined;
  const operands = [...args.slice(0, -1), ...(Array.isArray(values["_"]) ? values["_"] : [])].map(String).slice(0, -1);
  checkOperands(program, command, operands);
  if (end >= 0 && !command.takesCommand) throw new UsageError(`${command.name} takes nothing after --`);
  return { command, given: read(command, operands, end < 0 ? [] : argv.slice(end + 1), flags, values) };
}

/** A flag's value as `parse` reads it, undefined when it was not given. */
export function optional<Value>(
  given: Given,
  name: string,
  parseText: (flag: string, text: string) => Value,
): Value | undefined {
  const text = given.text(name);
  return text === undefined ? undefined : parseText(`--${name}`, text);
}

/** The command, and the other words; no command when the program itself was asked for help or its version. */
function find(program: Program, words: readonly string[]): { command?: Command; rest: string[] } {
  const [single] = program.commands;
  if (single?.name === "") return { command: single, rest: [...words] };
  let at = 0;
  const all = program.commands.flatMap((command) => flagsOf(program, command));
  const valued = new Set(
    all
      .filter(({ value }) => value !== undefined)
      .flatMap(names)
      .map(dashed),
  );
  while (words[at]?.startsWith("-")) at += valued.has(words[at] ?? "") ? 2 : 1;
  const before = words.slice(0, at);
  const after = words.slice(at);
  if (after[0] === "help") return find(program, [...after.slice(1), "--help"]);
  for (const count of [2, 1]) {
    const name = after.slice(0, count).join(" ");
    const command = program.commands.find(
      (known) => after.length >= count && (known.name === name || known.alias === name),
    );
    if (command) return { command, rest: [...before, ...after.slice(count)] };
  }
  if (after.length === 0 && before.some((word) => /^(-h|--help|-v|--version)$/.test(word))) return { rest: before };
  const known = program.commands.map(({ name }) => name);
  const list = `${known.join(", ")}; ${program.name} --help says more`;
  if (after.length === 0) throw new UsageError(`no command: ${list}`);
  const wanted = after.slice(0, known.some((name) => name.startsWith(`${after[0]} `)) ? 2 : 1).join(" ");
  const guess = likely(wanted, [...known, ...program.commands.flatMap(({ alias }) => alias ?? [])]);
  throw new UsageError(`no command ${JSON.stringify(wanted)}${guess}: ${list}`);
}

function build(program: Program): Sade {
  const tree = sade(program.name, program.commands[0]?.name === "").version(program.version);
  for (const command of program.commands) {
    if (command.name === "") tree.describe([...command.about]);
    else tree.command([command.name, command.operands].filter(Boolean).join(" ")).describe([...command.about]);
    if (command.alias) tree.alias(command.alias);
    for (const flag of flagsOf(program, command)) option(tree, flag);
    for (const example of command.examples ?? []) tree.example(example);
    tree.action(command.run);
  }
  return tree;
}

function flagsOf(program: Program, command: Command): readonly Flag[] {
  return command.offline ? command.flags : [...command.flags, ...program.flags];
}

function option(tree: Sade, { name, short, value, about }: Flag): void {
  tree.option(short ? `-${short}, --${name}` : `--${name}`, value ? `${value}: ${about}` : about);
}

/** A lone dash, which stands for stdin, is a value; mri takes one only behind "=". */
function withDashes(words: readonly string[], flags: readonly Flag[]): string[] {
  const valued = new Set(flags.flatMap((flag) => (flag.value === undefined ? [] : names(flag).map(dashed))));
  return words.flatMap((word, at) => {
    if (word === "-" && valued.has(words[at - 1] ?? "")) return [];
    return words[at + 1] === "-" && valued.has(word) ? [`${word}=-`] : [word];
  });
}

/**
 * A word as mri reads it right: of `-e` and `--env` it would forget one, it would take the word after a flag that is on
 * or off, and after `--flag=`.
 */
function plain(words: readonly string[], at: number, flags: readonly Flag[]): string {
  const [word = "", next = "-"] = words.slice(at);
  const [, dashedName, value] = /^(--?[^=]+)(=.*)?$/s.exec(word) ?? [];
  const flag = flags.find((known) => names(known).some((name) => dashedName === dashed(name)));
  if (!flag) return word;
  if (flag.value === undefined) return `--${flag.name}${value ?? "=true"}`;
  if (value === "=" || (value === undefined && next.startsWith("-"))) throw missingValue(flag);
  return `--${flag.name}${value ?? ""}`;
}

function read(
  command: Command,
  operands: readonly string[],
  words: readonly string[],
  flags: readonly Flag[],
  values: Readonly<Record<string, unknown>>,
): Given {
  for (const flag of flags) {
    const given = [values[flag.name] ?? []].flat();
    if (flag.value !== undefined && given.some((value) => value === "" || typeof value === "boolean")) {
      throw missingValue(flag);
    }
    if (!flag.bytes) for (const value of given) if (typeof value === "string") utf8(`--${flag.name}`, value);
  }
  for (const operand of operands) utf8(command.name, operand);
  const list = (name: string): string[] => {
    if (!flags.some((flag) => flag.name === name)) throw new Error(`${command.name} declares no flag --${name}`);
    return [values[name] ?? []].flat().map(String);
  };
  return {
    command: command.name,
    operands,
    words,
    list,
    text: (name) => list(name).at(-1),
    on: (name) => list(name).at(-1) === "true",
  };
}

function checkOperands(program: Program, command: Command, operands: readonly string[]): void {
  const { name, operands: wanted = "" } = command;
  const line = [program.name, name].filter(Boolean).join(" ");
  if (wanted.startsWith("<") && operands.length === 0) throw new UsageError(`no ${wanted}: ${line} ${wanted} is right`);
  if (wanted.includes("...") || operands.length <= (wanted === "" ? 0 : 1)) return;
  const extra = JSON.stringify(operands[wanted === "" ? 0 : 1]);
  const right = command.takesCommand ? `; the command goes after --: ${line} [flags] -- ${operands.join(" ")}` : "";
  throw new UsageError(`${line} takes no ${extra}${right}`);
}

function unknownFlag(word: string, { name: program }: Program, command: Command, flags: readonly Flag[]): never {
  const name = [program, command.name].filter(Boolean).join(" ");
  const guess = likely(
    word,
    flags.flatMap(({ name: known }) => dashed(known)),
  );
  const hint = command.takesCommand
    ? `; the command and its own flags go after --: ${name} [flags] -- CMD ARGS...`
    : "";
  throw new UsageError(`no flag ${word}${guess}${hint || `; ${name} --help lists them`}`);
}

function missingValue({ name, value }: Flag): UsageError {
  return new UsageError(`--${name} needs a value: --${name}=${value} (with = when it begins with a dash)`);
}

function likely(word: string, known: readonly string[]): string {
  const [nearest] = known
    // Half a word may be meant for the whole.
    .map((name) => ({ name, steps: name.startsWith(word) ? 1 : distance(word, name) }))
    .filter(({ steps, name }) => steps <= Math.max(1, Math.trunc(name.length / 3)))
    .toSorted((one, other) => one.steps - other.steps);
  return nearest ? `, did you mean ${nearest.name}?` : "";
}

/** Levenshtein's. */
function distance(one: string, other: string): number {
  let row = Array.from({ length: other.length + 1 }, (_, at) => at);
  for (const [index, letter] of one.split("").entries()) {
    const next = [index + 1];
    for (const [at, against] of other.split("").entries()) {
      const [left = 0, above = 0, corner = 0] = [next[at], row[at + 1], row[at]];
      next.push(Math.min(left + 1, above + 1, corner + (letter === against ? 0 : 1)));
    }
    row = next;
  }
  return row.at(-1) ?? 0;
}

function nameWords({ name }: Command): string[] {
  return name === "" ? [] : name.split(" ");
}

function names({ name, short }: Flag): string[] {
  return short ? [name, short] : [name];
}

function dashed(name: string): string {
  return name.length === 1 ? `-${name}` : `--${name}`;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}
