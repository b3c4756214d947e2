import { execFileSync } from "node:child_process";
import { globSync, readFileSync } from "node:fs";
import { basename, dirname, join, normalize, parse } from "node:path";

/*
 * node scripts/changed.ts [COMMIT]: the test files of what has changed since a commit, HEAD when absent, one a line.
 *
 * These are the tests that import a changed file, and those in its folder; of the supervisor in C, those with the file's
 * name where there are any. Suites that start whole programs are found by their folder alone: only `npm test` is all.
 */

const IMPORTS = /\b(?:from|import) ?\(?"(\.[^"]+)"/g;

const git = (...args: string[]): string[] =>
  execFileSync("git", args, { encoding: "utf8" }).split("\n").filter(Boolean);

function importsOf(path: string): string[] {
  const found = readFileSync(path, "utf8").matchAll(IMPORTS);
  return [...found].map(([, name = ""]) => normalize(join(dirname(path), name)));
}

const [commit = "HEAD"] = process.argv.slice(2);
const changed = [...git("diff", "--name-only", commit, "--"), ...git("ls-files", "--others", "--exclude-standard")];
const tests = globSync(["{src,cli,certs,debian,bench,scripts,e2e/engine,e2e/sabotage}/**/*.test.ts", "*.test.ts"]);
const importers = tests.map((path) => ({ path, imports: new Set(importsOf(path)) }));

function testsOf(file: string): string[] {
  const beside = tests.filter((test) => dirname(test) === dirname(file));
  const named = beside.filter((test) => basename(test).startsWith(`${parse(file).name}.`));
  if (!file.endsWith(".ts")) return named.length > 0 ? named : beside;
  if (file.endsWith(".test.ts")) return named;
  return [...beside, ...importers.flatMap(({ path, imports }) => (imports.has(file) ? [path] : []))];
}

for (const test of new Set(changed.flatMap(testsOf))) process.stdout.write(`${test}\n`);
