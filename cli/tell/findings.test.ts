import { expect, test } from "vitest";
import { PassThrough } from "node:stream";
import { exitCodeOfFindings, formatFindings, formatSummary, type Told } from "./findings.ts";
import { rendered } from "./text.ts";

const mounted = { reason: "it is read-only", remedy: "make it writable" };
const cpu: Told = { area: "controller", name: "cpu", state: "missing", meaning: "refused: --cpus", ...mounted };
const io: Told = { area: "controller", name: "io", state: "missing", meaning: "refused: --io-max", ...mounted };
const pids: Told = { area: "controller", name: "pids", state: "enforced", meaning: "--pids" };
const slice: Told = { area: "supervisor", name: "slice", state: "limited", meaning: "advice", reason: "old\x1b[2J" };

test("a table has an area's name once, and under what is not enforced why and what to do, once for what has it in common", () => {
  expect(formatFindings([cpu, io, pids, slice]).map((line) => rendered(line, new PassThrough()))).toEqual([
    "controller  ✗ cpu    refused: --cpus",
    "            ✗ io     refused: --io-max",
    "                     it is read-only",
    "                     → make it writable",
    "            ✓ pids   --pids",
    "supervisor  – slice  advice",
    "                     old\\x1b[2J",
  ]);
  expect(formatFindings([])).toEqual([]);
});

test.each([
  [[pids], 0, "all of it is enforced"],
  [[pids, slice], 0, "1 limited"],
  [[cpu, io, slice], 1, "2 missing, 1 limited"],
  [[cpu, { ...slice, state: "missing" } as const], 125, "2 missing: no daemon starts here"],
])("of findings the worst decides how a program exits", (findings, code, summary) => {
  expect([exitCodeOfFindings(findings), formatSummary(findings)]).toEqual([code, summary]);
});
