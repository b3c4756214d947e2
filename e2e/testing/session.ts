import { readFileSync } from "node:fs";
import { stripVTControlCharacters } from "node:util";

/** A command as a page shows it, and the lines that it prints there. */
export interface Step {
  readonly command: string;
  readonly printed: readonly string[];
}

/**
 * Returns the commands of a section: in its console blocks, the lines behind `# `, with those that go on behind `> `.
 *
 * @param page path of the page, from the top of the checkout
 */
export function stepsOf(page: string, section: string): Step[] {
  const text = readFileSync(new URL(`../../${page}`, import.meta.url), "utf8");
  const [, body] = text.split(`\n## ${section}\n`);
  if (body === undefined) throw new Error(`${page} has no section ${section}`);
  const [own = ""] = body.split("\n## ");
  const blocks = [...own.matchAll(/^```console\n(.*?)^```$/gms)].map(([, block = ""]) => block);
  return blocks.flatMap((block) =>
    block
      .split(/^# /m)
      .slice(1)
      .map((step) => {
        const [first = "", ...lines] = step.trimEnd().split("\n");
        const more = lines.findIndex((line) => !line.startsWith("> "));
        const rest = lines.slice(0, more === -1 ? undefined : more).map((line) => line.slice(2));
        return { command: [first, ...rest].join("\n"), printed: lines.slice(rest.length) };
      }),
  );
}

/** Returns whether output is what a page shows: `…` stands for any lines, and what differs from run to run is not compared. */
export function isAsShown(printed: readonly string[], output: string): boolean {
  const pattern = printed.map((line) => (line.trim() === "…" ? "(?:.*\n)*" : `${escape(alike(line))}\n`)).join("");
  // A carriage return has a terminal show what comes behind it in the place of what was there.
  const lines = stripVTControlCharacters(output)
    .split(/\r*\n/)
    .map((line) => alike(line.slice(line.lastIndexOf("\r") + 1)));
  // A line that is not ended, as a spinner that was wiped, is one, too.
  if (lines.at(-1) !== "") lines.push("");
  return new RegExp(`^${pattern}$`).test(lines.join("\n"));
}

/** A line without ids, times, numbers of two digits and more, and how wide a column is. */
function alike(line: string): string {
  return line
    .replaceAll(/\b[0-9a-hjkmnp-tv-z]{26}\b/g, "ID")
    .replaceAll(/\d+(?:[.:-]\d+)+|\d{2,}|\d(?=(?:ms|s|m|h|d|B|KiB|MiB|GiB)\b)/g, "N")
    .replaceAll(/\bN(?:ms|s|m|h|d|B|KiB|MiB|GiB)(?:Ns)?\b/g, "N")
    .replaceAll(/[ \t]+/g, " ")
    .trimEnd();
}

function escape(text: string): string {
  return text.replaceAll(/[\\^$.*+?()[\]{}|]/g, "\\$&");
}
