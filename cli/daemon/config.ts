import { lstatSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { codeOf, reasonOf } from "../../src/os/errno.ts";
import { UsageError } from "../line/parse.ts";
import { type Flag, type Given, likely } from "../line/program.ts";
import type { TomlEntry, TomlValue } from "../line/toml.ts";

/** The configuration file that is read where it exists and no other is named. */
export const CONFIG = "/etc/jobs/jobsd.toml";

/** How many faults of a file are told of beside the first. */
const MOST_TOLD = 20;
const MOST_OF_NAME = 100;

/** A flag of the daemon, which is a variable and a key of the configuration file as well. */
export interface Setting extends Flag {
  /** Each time that it is given counts; a key has a list. */
  readonly list?: true;
  /** A change is taken on SIGHUP. Any other needs a restart. */
  readonly reloads?: true;
  /** It says what one run is to do, and is no key. */
  readonly once?: true;
}

/** A configuration file that was read. */
interface Config {
  readonly file: string;
  readonly keys: ReadonlyMap<string, { readonly line: number; readonly texts: readonly string[] }>;
}

/**
 * Returns what the command line says, or else the environment (JOBSD_NAME), or else the configuration file, flag by flag. The
 * file is read anew at each call: the one that --config names, or `before`, or CONFIG where that exists. Throws UsageError.
 *
 * @param before the file of the call before, without which its keys would be missing
 */
export async function allGiven(
  given: Given,
  env: NodeJS.ProcessEnv,
  settings: readonly Setting[],
  before?: string,
): Promise<Given> {
  const line = lineAndEnvironment(given, env);
  const file = line.text("config") ?? before ?? (isMissing(CONFIG) ? undefined : CONFIG);
  if (file === undefined) return line;
  const config = await readConfig(resolve(file), settings);
  const list = (name: string): readonly string[] => {
    if (name === "config") return [config.file];
    const first = line.list(name);
    return first.length > 0 ? first : (config.keys.get(name)?.texts ?? []);
  };
  return {
    ...line,
    list,
    text: (name) => list(name).at(-1),
    on: (name) => (line.list(name).length > 0 ? line.on(name) : list(name).at(-1) === "true"),
    nameOf(name) {
      const key = line.list(name).length > 0 ? undefined : config.keys.get(name);
      return key ? `${config.file}:${key.line}: ${name}` : line.nameOf(name);
    },
  };
}

/** Returns false for a file that cannot be looked at, too: whoever reads it is told why. */
function isMissing(file: string): boolean {
  try {
    lstatSync(file);
    return false;
  } catch (error) {
    return codeOf(error) === "ENOENT";
  }
}

function lineAndEnvironment(given: Given, env: NodeJS.ProcessEnv): Given {
  const variable = (name: string): string => `JOBSD_${name.toUpperCase().replaceAll("-", "_")}`;
  const list = (name: string): readonly string[] => {
    const first = given.list(name);
    return first.length > 0 ? first : [env[variable(name)] ?? ""].filter(Boolean);
  };
  const nameOf = (name: string): string =>
    given.list(name).length === 0 && env[variable(name)] ? variable(name) : given.nameOf(name);
  return {
    ...given,
    list,
    text: (name) => list(name).at(-1),
    on(name) {
      const text = list(name).at(-1) ?? "false";
      if (/^(1|true|yes)$/.test(text)) return true;
      if (/^(0|false|no)$/.test(text)) return false;
      throw new UsageError(`${nameOf(name)} ${JSON.stringify(text)} is neither true nor false`);
    },
    nameOf,
  };
}

/** Reads a configuration file. Throws UsageError with all that is wrong with its keys, led by FILE:LINE. */
async function readConfig(file: string, settings: readonly Setting[]): Promise<Config> {
  const keys = new Map<string, { line: number; texts: readonly string[] }>();
  const wrong: string[] = [];
  for (const entry of await entriesIn(file)) {
    const { path, line } = entry;
    const name = path.join(".");
    try {
      keys.set(name, { line, texts: textsOf(entry, name, settings, dirname(file)) });
    } catch (error) {
      if (!(error instanceof UsageError)) throw error;
      wrong.push(`${file}:${line}: ${error.message}`);
    }
  }
  const [first, ...more] = wrong;
  const unsaid = more.splice(MOST_TOLD).length;
  if (first !== undefined) throw new UsageError(first, unsaid > 0 ? [...more, `and ${unsaid} more`] : more);
  return { file, keys };
}

async function entriesIn(file: string): Promise<readonly TomlEntry[]> {
  const { readToml } = await import("../line/toml.ts");
  try {
    return await readToml(file);
  } catch (error) {
    throw new UsageError(reasonOf(error));
  }
}

/** Returns a key's value as flags would give it. A relative path counts from the file's directory. */
function textsOf({ value }: TomlEntry, name: string, settings: readonly Setting[], directory: string): string[] {
  const setting = settings.find((known) => known.name === name);
  if (!setting) {
    const known = settings.filter(({ once }) => !once).map((each) => each.name);
    throw new UsageError(
      `there is no key ${name.slice(0, MOST_OF_NAME)}${likely(name, known)}; jobsd --help lists the flags, and each is a key`,
    );
  }
  if (setting.once) throw new UsageError(`${name} is no key: give --${name} on the command line`);
  const items = setting.list && value.kind === "array" ? value.items : [value];
  return items.map((item) => {
    const text = textOf(item, setting);
    if (text === undefined) {
      const what = item === value ? `is ${kindOf(value)}` : `has ${kindOf(item)} among them`;
      throw new UsageError(`${name} must be ${wanted(setting)}, and ${what}`);
    }
    if (text === "") throw new UsageError(`${name} is empty; leave the key out where it is not to count`);
    const [, socket] = /^unix:(.+)$/s.exec(text) ?? [];
    if (socket !== undefined) return `unix:${resolve(directory, socket)}`;
    const isPath = /\b(FILE|DIR)\b/.test(setting.value ?? "") && !/^[a-z0-9]+:/i.test(text);
    return isPath ? resolve(directory, text) : text;
  });
}

/** Returns a value as text; undefined when it is of the wrong type. */
function textOf(value: TomlValue, setting: Setting): string | undefined {
  if (setting.value === undefined) return value.kind === "boolean" ? String(value.on) : undefined;
  if (value.kind === "string") return value.text;
  return value.kind === "integer" && takesNumber(setting) ? value.text : undefined;
}

function takesNumber({ value = "" }: Setting): boolean {
  return /^(N|SIZE)\b/.test(value);
}

/** Says what a key's value has to be. */
export function wanted(setting: Setting): string {
  if (setting.value === undefined) return "true or false";
  const one = takesNumber(setting) ? "a number, or a text in quotes" : "a text in quotes";
  return setting.list ? `${one}, or a list of them` : one;
}

function kindOf(value: TomlValue): string {
  const kinds = { string: "a text", integer: "a number", boolean: "true or false", array: "a list" };
  return value.kind === "other" ? value.what : kinds[value.kind];
}
