import { existsSync, globSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect, test } from "vitest";
import manifest from "./package.json" with { type: "json" };

const PAGES = globSync(["*.md", "docs/**/*.md"]).map((path) => ({ path, text: readFileSync(path, "utf8") }));

/** What a pattern finds in the pages, as "PATH: FOUND", where `isWrong` says so. */
function found(pattern: RegExp, isWrong: (found: string, path: string) => boolean): string[] {
  return PAGES.flatMap(({ path, text }) =>
    [...text.matchAll(pattern)].flatMap(([all, group = all]) => (isWrong(group, path) ? [`${path}: ${group}`] : [])),
  );
}

test("no cell of a table has more than 120 characters: what needs more is a section", () => {
  const long = found(/^\|.*\|$/gm, (row) => row.split(/(?<!\\)\|/).some((cell) => cell.trim().length > 120));
  expect(long).toEqual([]);
});

test("each page says in its first sentence whom it is for", () => {
  const pages = PAGES.filter(({ path }) => !path.startsWith("docs/decisions/") && path !== "README.md");
  const silent = pages.filter(({ text }) => !/^# .+\n\nThis page is for /.test(text));
  expect(silent.map(({ path }) => path)).toEqual([]);
});

test("links and paths lead to files that are there", () => {
  expect(found(/\]\((?!https?:|#)([^)#]+)/g, (link, path) => !existsSync(join(dirname(path), link)))).toEqual([]);
  const paths =
    /(?<![\w/.-])((?:src|cli|certs|debian|docker|e2e|faults|bench|scripts)\/[\w/.-]+\.(?:ts|c|h|sh|table))\b/g;
  expect(found(paths, (file) => !existsSync(file))).toEqual([]);
});

test("scripts of npm that pages name are there", () => {
  expect(found(/npm run ([\w:]+)/g, (script) => !(script in manifest.scripts))).toEqual([]);
});
