import { type AST, ParseError, parseTOML } from "toml-eslint-parser";
import { readSmall } from "../../src/x509/file.ts";
import { SettingError, textOf } from "./connection.ts";

/** The characters of a line that an error shows. */
const MOST_SHOWN = 120;

/** A value of TOML. What no setting can be is `other`, with its name. */
export type TomlValue =
  | { readonly kind: "string"; readonly text: string }
  | { readonly kind: "integer"; readonly text: string }
  | { readonly kind: "boolean"; readonly on: boolean }
  | { readonly kind: "array"; readonly items: readonly TomlValue[] }
  | { readonly kind: "other"; readonly what: string };

/** A key with its value; `path` begins with the names of the tables that it is in. A table has an entry of its own, too. */
export interface TomlEntry {
  readonly path: readonly string[];
  readonly line: number;
  readonly value: TomlValue;
}

/**
 * Reads a TOML file (toml.io, 1.0), in order. Throws SettingError, led by FILE:LINE, for what is not TOML, and for a key that
 * is there twice; PemError when the file cannot be read.
 */
export async function readToml(file: string): Promise<readonly TomlEntry[]> {
  const text = textOf(await readSmall(file), file);
  try {
    const [top] = parseTOML(text, { tomlVersion: "1.0" }).body;
    return top.body.flatMap((part) => (part.type === "TOMLTable" ? tableEntries(part) : entriesOf([], part)));
  } catch (error) {
    if (error instanceof RangeError) throw new SettingError(`${file}: is nested too deeply`, { cause: error });
    if (!(error instanceof ParseError)) throw error;
    const { lineNumber, message } = error;
    // An end that is missing is told of in the line after the last.
    const lines = text.trimEnd().split(/\r\n|\n/);
    const line = Math.min(lineNumber, lines.length);
    const reason = `${message.charAt(0).toLowerCase()}${message.slice(1)}`;
    const hint = "texts are in quotes, and switches are true or false";
    const shown = lines[line - 1]?.trim().slice(0, MOST_SHOWN);
    throw new SettingError(`${file}:${line}: is not TOML, ${reason}: ${shown} (${hint})`, { cause: error });
  }
}

function tableEntries(table: AST.TOMLTable): TomlEntry[] {
  const path = table.resolvedKey.map(String);
  const what = table.kind === "array" ? "an array of tables" : "a table";
  const own = { path, line: table.loc.start.line, value: { kind: "other", what } } as const;
  return [own, ...table.body.flatMap((part) => entriesOf(path, part))];
}

function entriesOf(above: readonly string[], { key, value, loc }: AST.TOMLKeyValue): TomlEntry[] {
  const path = [...above, ...key.keys.map((part) => (part.type === "TOMLBare" ? part.name : part.value))];
  const own = { path, line: loc.start.line, value: valueOf(value) };
  return value.type === "TOMLInlineTable" ? [own, ...value.body.flatMap((part) => entriesOf(path, part))] : [own];
}

function valueOf(node: AST.TOMLContentNode): TomlValue {
  if (node.type === "TOMLArray") return { kind: "array", items: node.elements.map(valueOf) };
  if (node.type === "TOMLInlineTable") return { kind: "other", what: "a table" };
  switch (node.kind) {
    case "string":
      return { kind: "string", text: node.value };
    case "integer":
      return { kind: "integer", text: String(node.bigint) };
    case "boolean":
      return { kind: "boolean", on: node.value };
    default:
      return { kind: "other", what: node.kind === "float" ? "a number with a fraction" : "a date" };
  }
}
