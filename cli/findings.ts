import { ExamineResponse } from "../proto/generated/jobs/v1/worker.ts";
import { fromFinding } from "../src/server/translate.ts";
import type { Finding } from "../src/worker/index.ts";
import { EXIT } from "./exit.ts";
import { printMessage } from "./output.ts";
import { type Line, padded, widthOf } from "./text.ts";

/** A finding, also of what only a program looks at. */
export type Told = Omit<Finding, "area"> & { readonly area: string };

const MARKS = {
  enforced: { mark: "✓", colour: "green" },
  limited: { mark: "–", colour: "yellow" },
  missing: { mark: "✗", colour: "red" },
} as const;

/** Without these no daemon starts. */
const NEEDED: ReadonlySet<string> = new Set(["supervisor", "state", "certificate", "user"]);

/** 0 when nothing is missing, 1 when jobs lack something, 125 when a daemon could not start. */
export function exitCodeOfFindings(findings: readonly Told[]): number {
  const missing = findings.filter(({ state }) => state === "missing");
  if (missing.some(({ area }) => NEEDED.has(area))) return EXIT.unavailable;
  return missing.length > 0 ? EXIT.failed : EXIT.ok;
}

/** A table by area; under what is not enforced why, and what to do, once for rows that have it in common. */
export function formatFindings(findings: readonly Told[]): Line[] {
  const widest = (text: (finding: Told) => string): number =>
    Math.max(...findings.map((each) => widthOf(text(each))), 0);
  const [areas, names] = [widest(({ area }) => area), widest(({ name }) => name)];
  const below = " ".repeat(areas + names + 6);
  return findings.flatMap(({ area, name, state, meaning, reason, remedy }, at): Line[] => {
    const [before, after] = [findings[at - 1], findings[at + 1]];
    const { mark, colour } = MARKS[state];
    const heading = padded(area === before?.area ? "" : area, areas);
    const row: Line = [`${heading}  `, { text: mark, style: colour }, ` ${padded(name, names)}  ${meaning}`];
    if (after?.area === area && after.reason === reason && after.remedy === remedy) return [row];
    const why: Line[] = reason ? [[below, { text: reason, style: "dim" }]] : [];
    return [row, ...why, ...(remedy ? [`${below}→ ${remedy}`] : [])];
  });
}

/** As the API has them. */
export function printFindings(findings: readonly Told[], time?: Date): Promise<void> {
  return printMessage("ExamineResponse", ExamineResponse.encode({ findings: findings.map(fromFinding), time }));
}

/** In a line. */
export function formatSummary(findings: readonly Told[]): string {
  const count = (state: Told["state"]): number => findings.filter((each) => each.state === state).length;
  const [missing, limited] = [count("missing"), count("limited")];
  const parts = [missing > 0 && `${missing} missing`, limited > 0 && `${limited} limited`].filter(Boolean);
  const end = exitCodeOfFindings(findings) === EXIT.unavailable ? ": no daemon starts here" : "";
  return parts.length > 0 ? `${parts.join(", ")}${end}` : "all of it is enforced";
}
