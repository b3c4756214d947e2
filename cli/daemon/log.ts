import { type Logger, pino } from "pino";
import { isTerminal, unwaiting } from "../tell/descriptors.ts";
import { lineForStderr } from "../tell/output.ts";
import type { Part } from "../tell/text.ts";
import { linesTo } from "./lines.ts";

/**
 * Opens the log on stderr: for people on a terminal, and JSON elsewhere. It is written at once: the last words of a daemon
 * that dies are those that matter.
 */
export function openLog(level: string): Logger {
  const out = linesTo(unwaiting(2), (lines, reason) =>
    log.error({ lines, reason }, `${lines} lines of this log could not be written`),
  );
  const log: Logger = pino(
    {
      level,
      base: null,
      formatters: { level: (label) => ({ level: label }) },
      timestamp: pino.stdTimeFunctions.isoTime,
    },
    isTerminal(2) ? { write: (json: string) => out.write(readable(json)) } : out,
  );
  return log;
}

const STYLES = { debug: "dim", info: "green", warn: "yellow", error: "red", fatal: "red" } as const;

/** Turns a line of the log into one for people, with an error's stack in lines below it. */
function readable(json: string): string {
  const { time, level, msg, err, ...facts }: Readonly<Record<string, unknown>> = JSON.parse(json);
  const style = Object.entries(STYLES).find(([name]) => name === level)?.[1] ?? "dim";
  const { message, stack }: Readonly<Record<string, unknown>> =
    typeof err === "object" && err !== null ? { ...err } : {};
  const more = Object.entries({ ...facts, ...(message !== undefined && { error: message }) });
  const line: Part[] = [
    { text: String(time).replace(/\.\d+/, ""), style: "dim" },
    " ",
    { text: String(level).toUpperCase().padEnd(5), style },
    ` ${String(msg)}`,
    ...more.map(([name, value]): Part => ({ text: `  ${name}=${shown(value)}`, style: "dim" })),
  ];
  const below = typeof stack === "string" ? stack.split("\n").slice(1) : [];
  return [line, ...below.map((text): Part[] => [{ text, style: "dim" }])].map(lineForStderr).join("");
}

/** A value without quotes where it can be read without them. */
function shown(value: unknown): string {
  return typeof value === "string" && /^[^\s"=]+$/.test(value) ? value : JSON.stringify(value);
}
