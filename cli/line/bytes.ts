import { readFileSync } from "node:fs";
import { textOf } from "../../src/os/bytes.ts";
import { UsageError } from "./parse.ts";

/*
 * Words and variables as bytes.ts has bytes in text. Node has put U+FFFD for each byte that is not UTF-8; where it stands,
 * the kernel tells what was there (proc_pid_cmdline(5), proc_pid_environ(5)).
 */

/** The words behind the program's name. */
export function commandLine(): string[] {
  const words = process.argv.slice(2);
  return words.some(isReplaced) ? (kernel("cmdline")?.slice(-words.length) ?? words) : words;
}

/** The environment. Throws UsageError where a setting of these programs is not UTF-8. */
export function environment(): NodeJS.ProcessEnv {
  if (!Object.entries(process.env).flat().some(isReplaced)) return process.env;
  const pairs = kernel("environ")?.map((pair) => [pair.split("=", 1)[0] ?? "", pair.slice(pair.indexOf("=") + 1)]);
  const env: NodeJS.ProcessEnv = pairs ? Object.fromEntries(pairs) : process.env;
  for (const [name, value = ""] of Object.entries(env)) if (/^JOBSD?_/.test(name)) utf8(name, value);
  return env;
}

/** Returns the text. Throws UsageError naming `what` where it is not UTF-8. */
export function utf8(what: string, text: string): string {
  if (text.isWellFormed()) return text;
  throw new UsageError(`${what} ${JSON.stringify(text)} is not UTF-8, which is all that it can be`);
}

function isReplaced(text: string | undefined): boolean {
  return text?.includes("\ufffd") ?? false;
}

function kernel(file: "cmdline" | "environ"): string[] | undefined {
  try {
    return textOf(readFileSync(`/proc/self/${file}`))
      .split("\0")
      .slice(0, -1);
  } catch {
    return undefined; // no Linux
  }
}
