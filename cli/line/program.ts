import sade, { type Sade } from "sade";
import { utf8 } from "./bytes.ts";
import { UsageError } from "./parse.ts";

/** `--name VALUE`, or on and off where it has no `value`. */
export interface Flag {
  readonly name: string;
  /** A single letter. */
  readonly short?: string;
  /** The name of the value in the help. */
  readonly value?: string;
  /** The value may be any bytes, which bytes.ts has in text; elsewhere it is UTF-8. */
  readonly bytes?: boolean;
  readonly about: string;
}

export interface Command {
  /** One or two words. */
  readonly name: string;
  readonly alias?: string;
  /** The operands as sade's help shows them: `<id...>`. */
  readonly operands?: string;
  readonly about: readonly string[];
  readonly flags: readonly Flag[];
  readonly examples?: readonly string[];
  /** The words after `--` are a command line that it takes. */
  readonly takesCommand?: boolean;
  /** The command talks to no worker, and does not have the program's flags. */
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
  /** A flag's name as whoever gave it has written it, for errors. */
  nameOf(flag: string): string;
}

export interface Program {
  readonly name: string;
  readonly version: string;
  /** Flags of every command that is not offline; they may stand in front of it. */
  readonly flags: readonly Flag[];
  /** A single command without a name makes a program without commands. */
  readonly commands: readonly Command[];
}

/**
 * Understands a command line (without node and script), flags as getopt_long(3) has them. Undefined when it asked for
 * help or the version, which sade has written then. Throws UsageError.
 */
export function parse(program: Program, argv: readonly string[]): { command: Command; given: Given } | undefined {
  const { command, words } = find(program, argv);
  const flags = command
    ? [...flagsOf(program, command), ...OWN.filter(({ name }) => name === "help" || command.name === "")]
    : [...program.flags, ...OWN];
  const read = scan(words, flags, (word) => unknownFlag(word, program, command, flags));
  const asked = ["help", "version"].find((name) => read.values.has(name));
  if (!command || asked) {
    build(program, command).parse(["", program.name, ...(command?.name.split(" ") ?? []), `--${asked}`]);
    return undefined;
  }
  const operands = command.takesCommand ? read.operands : [...read.operands, ...read.behind];
  checkOperands(program, command, operands);
  return { command, given: givenOf(command, operands, command.takesCommand ? read.behind : [], flags, read.values) };
}

/** A flag's value as `parse` reads it, undefined when it was not given. */
export function optional<Value>(
  given: Given,
  name: string,
  parseText: (flag: string, text: string) => Value,
): Value | undefined {
  const text = given.text(name);
  return text === undefined ? undefined : parseText(given.nameOf(name), text);
}

const OWN: readonly Flag[] = [
  { name: "help", short: "h", about: "" },
  { name: "version", short: "v", about: "" },
];

/** The command and the other words; no command where the program itself was asked for its help or version. */
function find(program: Program, argv: readonly string[]): { command?: Command; words: readonly string[] } {
  const [single] = program.commands;
  if (single?.name === "") return { command: single, words: argv };
  // Flags may stand before the command, which then decides whether they are its own.
  const all = [...OWN, ...program.commands.flatMap((command) => flagsOf(program, command))];
  let at = 0;
  while (isFlag(argv[at])) at += takesNext(argv[at] ?? "", all) ? 2 : 1;
  const [before, after] = [argv.slice(0, at), argv.slice(at)];
  if (after[0] === "help") return find(program, [...before, "--help", ...after.slice(1)]);
  for (const count of [2, 1]) {
    const name = after.slice(0, count).join(" ");
    const command = program.commands.find(
      (known) => after.length >= count && (known.name === name || known.alias === name),
    );
    if (command) return { command, words: [...before, ...after.slice(count)] };
  }
  const { values } = scan(before, [...OWN, ...(after.length > 0 ? all : program.flags)], (word) =>
    unknownFlag(word, program, undefined, all),
  );
  if (after.length === 0 && (values.has("help") || values.has("version"))) return { words: before };
  const known = program.commands.map(({ name }) => name);
  const list = `${known.join(", ")}; ${program.name} --help says more`;
  if (after.length === 0) throw new UsageError(`no command: ${list}`);
  const wanted = after.slice(0, known.some((name) => name.startsWith(`${after[0]} `)) ? 2 : 1).join(" ");
  const guess = likely(wanted, [...known, ...program.commands.flatMap(({ alias }) => alias ?? [])]);
  throw new UsageError(`no command ${JSON.stringify(wanted)}${guess}: ${list}`);
}

interface Scanned {
  /** The values that each flag was given, in order; "true" or "false" for a flag that takes none. */
  readonly values: ReadonlyMap<string, readonly string[]>;
  readonly operands: readonly string[];
  /** The words after `--`. */
  readonly behind: readonly string[];
}

/** Tells flags from operands. A flag may stand anywhere before `--`. */
function scan(words: readonly string[], flags: readonly Flag[], unknown: (word: string) => never): Scanned {
  const values = new Map<string, string[]>();
  const operands: string[] = [];
  const add = (flag: Flag, value: string): void =>
    void values.set(flag.name, [...(values.get(flag.name) ?? []), value]);
  for (let at = 0; at < words.length; at++) {
    const word = words[at] ?? "";
    if (word === "--") return { values, operands, behind: words.slice(at + 1) };
    if (!isFlag(word)) {
      operands.push(word);
      continue;
    }
    for (const { flag, attached } of flagsIn(word, flags, unknown)) {
      if (flag.value === undefined) {
        if (!/^(true|false)?$/.test(attached ?? ""))
          throw new UsageError(`--${flag.name} takes no value other than true and false`);
        add(flag, attached || "true");
      } else {
        const value = attached ?? words[++at] ?? "";
        // A flag in its place means that the value was forgotten; a lone dash stands for stdin.
        if (value === "" || (attached === undefined && isFlag(value))) throw missingValue(flag);
        add(flag, value);
      }
    }
  }
  return { values, operands, behind: [] };
}

/** The flags of one word: `--name`, `--name=VALUE`, `-q`, `-qf`, `-n1`, `-qn1`, `-n=1`. */
function flagsIn(
  word: string,
  flags: readonly Flag[],
  unknown: (word: string) => never,
): { readonly flag: Flag; readonly attached: string | undefined }[] {
  if (word.startsWith("--")) {
    const [, name, value] = /^--([^=]*)(?:=(.*))?$/s.exec(word) ?? [];
    return [{ flag: flags.find((known) => known.name === name) ?? unknown(`--${name}`), attached: value }];
  }
  const found: { flag: Flag; attached: string | undefined }[] = [];
  for (let at = 1; at < word.length; at++) {
    const letter = String.fromCodePoint(word.codePointAt(at) ?? 0);
    const flag = flags.find(({ short }) => short === letter) ?? unknown(`-${letter}`);
    const rest = word.slice(at + 1);
    const ends = flag.value !== undefined || rest.startsWith("=");
    found.push({ flag, attached: ends && rest !== "" ? rest.replace(/^=/, "") : undefined });
    if (ends) break;
  }
  return found;
}

/** Whether the value of a word's last flag is the next word. */
function takesNext(word: string, flags: readonly Flag[]): boolean {
  const unknown = (): never => {
    throw new UsageError("");
  };
  try {
    const last = flagsIn(word, flags, unknown).at(-1);
    return last?.flag.value !== undefined && last.attached === undefined;
  } catch {
    return false; // told of once the command is known
  }
}

function isFlag(word: string | undefined): boolean {
  return word !== undefined && word.startsWith("-") && word !== "-" && word !== "--";
}

/** A tree for sade's help, in which `shown` alone has its flags: the others' are a third of the help's time. */
function build(program: Program, shown: Command | undefined): Sade {
  const tree = sade(program.name, program.commands[0]?.name === "").version(program.version);
  for (const command of program.commands) {
    if (command.name === "") tree.describe([...command.about]);
    else tree.command([command.name, command.operands].filter(Boolean).join(" ")).describe([...command.about]);
    if (command.alias) tree.alias(command.alias);
    for (const flag of command === shown ? flagsOf(program, command) : []) option(tree, flag);
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

function givenOf(
  command: Command,
  operands: readonly string[],
  words: readonly string[],
  flags: readonly Flag[],
  values: Scanned["values"],
): Given {
  for (const { name, bytes } of flags) if (!bytes) for (const value of values.get(name) ?? []) utf8(`--${name}`, value);
  for (const operand of operands) utf8(command.name, operand);
  const list = (name: string): readonly string[] => {
    if (!flags.some((flag) => flag.name === name)) throw new Error(`${command.name} declares no flag --${name}`);
    return values.get(name) ?? [];
  };
  return {
    command: command.name,
    operands,
    words,
    list,
    text: (name) => list(name).at(-1),
    on: (name) => list(name).at(-1) === "true",
    nameOf: (name) => `--${name}`,
  };
}

function checkOperands(program: Program, command: Command, operands: readonly string[]): void {
  const { name, operands: wanted = "" } = command;
  const line = [program.name, name].filter(Boolean).join(" ");
  if (wanted.startsWith("<") && operands.length === 0) throw new UsageError(`no ${wanted}; give ${line} ${wanted}`);
  if (wanted.includes("...") || operands.length <= (wanted === "" ? 0 : 1)) return;
  const extra = JSON.stringify(operands[wanted === "" ? 0 : 1]);
  const right = command.takesCommand ? `; the command goes after --: ${line} [flags] -- ${operands.join(" ")}` : "";
  throw new UsageError(`${line} takes no ${extra}${right}`);
}

function unknownFlag(
  word: string,
  { name: program }: Program,
  command: Command | undefined,
  flags: readonly Flag[],
): never {
  const name = [program, command?.name].filter(Boolean).join(" ");
  const guess = likely(
    word,
    flags.map(({ name: known }) => dashed(known)),
  );
  const hint = command?.takesCommand
    ? `; the command and its own flags go after --: ${name} [flags] -- CMD ARGS...`
    : "";
  throw new UsageError(`no flag ${word}${guess}${hint || `; ${name} --help lists them`}`);
}

function missingValue({ name, value }: Flag): UsageError {
  return new UsageError(`--${name} needs a value: --${name}=${value} (with = when it begins with a dash)`);
}

/** Asks whether the nearest of the known words was meant; an empty text where none is near. */
export function likely(word: string, known: readonly string[]): string {
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

function dashed(name: string): string {
  return name.length === 1 ? `-${name}` : `--${name}`;
}
