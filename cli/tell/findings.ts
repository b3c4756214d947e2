import { ExamineResponse, FindingState } from "../../proto/generated/jobs/v1/worker.ts";
import { EXIT } from "./exit.ts";
import { printMessage } from "./output.ts";
import { type Line, padded, widthOf } from "./text.ts";

/** Whether a promise to jobs is kept: a worker's finding, or a program's own. */
export interface Told {
  readonly area: string;
  /** Such as "memory" or "pid". */
  readonly name: string;
  /** `limited`: jobs have less than they could, but no promise is broken. */
  readonly state: "enforced" | "limited" | "missing";
  /** The meaning of the state for a job, in a short phrase. */
  readonly meaning: string;
  readonly reason?: string;
  readonly remedy?: string;
}

const MARKS = {
  enforced: { mark: "✓", colour: "green", state: FindingState.FINDING_STATE_ENFORCED },
  limited: { mark: "–", colour: "yellow", state: FindingState.FINDING_STATE_LIMITED },
  missing: { mark: "✗", colour: "red", state: FindingState.FINDING_STATE_MISSING },
} as const;

/** Areas without which no daemon starts. */
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

/** Prints findings as the API's message in JSON. */
export function printFindings(findings: readonly Told[], time?: Date): Promise<void> {
  const told = findings.map(({ state, reason = "", remedy = "", ...what }) => {
    return { ...what, state: MARKS[state].state, reason, remedy };
  });
  return printMessage("ExamineResponse", ExamineResponse.encode({ findings: told, time }));
}

/** Returns a worker's findings; one whose state is of a newer API counts as limited. */
export function toldOf({ findings }: ExamineResponse): Told[] {
  const words = ["enforced", "limited", "missing"] as const;
  return findings.map(({ state, ...what }) => {
    return { ...what, state: words.find((word) => MARKS[word].state === state) ?? "limited" };
  });
}

/** Returns a line with the number of findings that are missing or limited. */
export function formatSummary(findings: readonly Told[]): string {
  const count = (state: Told["state"]): number => findings.filter((each) => each.state === state).length;
  const [missing, limited] = [count("missing"), count("limited")];
  const parts = [missing > 0 && `${missing} missing`, limited > 0 && `${limited} limited`].filter(Boolean);
  const end = exitCodeOfFindings(findings) === EXIT.unavailable ? ": no daemon starts here" : "";
  return parts.length > 0 ? `${parts.join(", ")}${end}` : "all of it is enforced";
}
