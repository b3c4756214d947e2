import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { Random } from "./mutate.ts";

/* A target of the fuzzer is a parser, given damaged copies of FILES, which real jobs have left in a directory. */

/** Gives a parser one case. Throws what the parser does. */
export type Target = (random: Random) => Promise<void>;

export interface Opened extends Disposable {
  readonly run: Target;
}

/** The directories in FILES: the log of a job, a log of very many pieces, each in both forms, and a state directory. */
export const FILES = { log: "log", many: "many", state: "state" } as const;
/** main.ts ends what takes too long. */
export const never = new AbortController().signal;
export const LOGS = [FILES.log, FILES.many] as const;

/** A directory of its own in FILES, removed in the end. */
export function workDirectory(files: string): Disposable & { readonly path: string } {
  const path = mkdtempSync(join(files, "work-"));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

/** The directories of the jobs in FILES. */
export function jobsIn(files: string): string[] {
  const jobs = join(files, FILES.state, "jobs");
  const found = readdirSync(jobs).toSorted();
  return found.flatMap((name) => (name.startsWith(".") ? [] : [join(jobs, name)]));
}
