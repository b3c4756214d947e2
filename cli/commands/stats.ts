import { StatsResponse, type Usage } from "../../proto/generated/jobs/v1/worker.ts";
import { reopening } from "../../src/client/resume.ts";
import { withClient } from "./with-client.ts";
import { EXIT } from "../tell/exit.ts";
import { describeEnd } from "../tell/format.ts";
import { checkJob, riding } from "../tell/outage.ts";
import { formatBytes, formatDuration, toMs } from "../tell/units.ts";
import { exitBy, print, printMessage, printOver, say, terminalWidth } from "../tell/output.ts";
import { parseDurationMs, toDuration, UsageError } from "../line/parse.ts";
import { type Given, optional } from "../line/program.ts";

const LEAST_INTERVAL_MS = 100;

/** `jobsctl stats [flags] ID`: a line a sample until the job has ended; on a terminal one line, written again and again. */
export async function stats(given: Given): Promise<number> {
  const [jobId = ""] = given.operands;
  const intervalMs = optional(given, "interval", parseDurationMs);
  if (intervalMs !== undefined && intervalMs < LEAST_INTERVAL_MS)
    throw new UsageError(`--interval ${given.text("interval")} is too short: ${LEAST_INTERVAL_MS}ms is the least`);
  const request = { jobId, interval: intervalMs === undefined ? undefined : toDuration(intervalMs) };
  const write = given.on("json") || given.text("output") === "json" ? writeJson : table();
  // Looking away is all that a signal does here: the job goes on.
  process.once("SIGINT", () => {
    leaveLine();
    void exitBy("SIGINT");
  });
  return withClient(given, async (client) => {
    await checkJob(client, jobId);
    for await (const message of reopening(client, () => client.stats(request), riding(client, { before: leaveLine }))) {
      const last = given.on("once") || message.end !== undefined;
      await write(message, last);
      if (message.end) say(`job ${jobId}: ${describeEnd(message.end).words}`);
      if (last) return EXIT.ok;
    }
    say(`job ${jobId}: the worker ended the samples without telling how the job is`);
    return EXIT.failed;
  });
}

/** Ends the line that is written again and again, so that the next message stands in a line of its own. */
function leaveLine(): void {
  if (terminalWidth !== undefined) void print([""]);
}

type Write = (message: StatsResponse, last: boolean) => Promise<void>;

async function writeJson(message: StatsResponse): Promise<void> {
  await printMessage("StatsResponse", StatsResponse.encode(message), { compact: true });
}

type Column = readonly [title: string, width: number, cell: (now: Usage, before: Usage | undefined) => string];

/** The columns. A rate covers the time since the line before, and the job's whole life in the first and the last line. */
const COLUMNS: readonly Column[] = [
  ["ELAPSED", 7, (now) => formatDuration(now.elapsed)],
  [
    "CPU",
    6,
    (now, before) =>
      percent(
        share(now, before, (usage) => toMs(usage.cpuUser) + toMs(usage.cpuSystem)),
        1,
      ),
  ],
  ["THROTTLED", 9, (now, before) => percent(throttled(now, before))],
  ["MEMORY", 6, ({ memoryCurrent }) => size(memoryCurrent)],
  ["PEAK", 6, ({ memoryPeak }) => size(memoryPeak)],
  ["SWAP", 6, ({ memorySwap }) => size(memorySwap)],
  ["READ/S", 6, (now, before) => size(rate(now, before, ({ ioReadBytes }) => ioReadBytes))],
  ["WRITE/S", 7, (now, before) => size(rate(now, before, ({ ioWriteBytes }) => ioWriteBytes))],
  ["PIDS", 4, ({ processes }) => String(processes ?? "-")],
  ["WAITS:CPU", 9, ({ cpuPressure }) => percent(cpuPressure?.some?.avg10)],
  ["MEM", 4, ({ memoryPressure }) => percent(memoryPressure?.some?.avg10)],
  ["IO", 4, ({ ioPressure }) => percent(ioPressure?.some?.avg10)],
];

const GAP = "  ";
const WIDTH = COLUMNS.reduce((sum, [, width]) => sum + width + GAP.length, -GAP.length);
/** Columns that are left out on a narrow terminal: the others fit in 80 cells. */
const SPARED: ReadonlySet<string> = new Set(["PEAK", "SWAP"]);

function table(): Write {
  const width = terminalWidth || Infinity;
  const columns = width < WIDTH ? COLUMNS.filter(([title]) => !SPARED.has(title)) : COLUMNS;
  const line = (cellOf: (column: Column) => string): string =>
    columns
      .map((column) => cellOf(column).padStart(column[1]))
      .join(GAP)
      // A longer line would take two rows, which cannot be written over.
      .slice(0, width);
  let before: Usage | undefined;
  let first = true;
  return async ({ usage, end }, last) => {
    if (first) await print([line(([title]) => title)]);
    first = false;
    if (!usage) return;
    const since = end ? undefined : before;
    const cells = line(([, , cell]) => cell(usage, since));
    before = usage;
    await (terminalWidth === undefined ? print([cells]) : printOver(cells, last));
  };
}

/** Percent of the time from `before` to `now` that a clock went on for. */
function share(now: Usage, before: Usage | undefined, clockMs: (usage: Usage) => number): number | undefined {
  const elapsedMs = toMs(now.elapsed) - toMs(before?.elapsed);
  const wentMs = clockMs(now) - (before ? clockMs(before) : 0);
  return elapsedMs > 0 ? (100 * wentMs) / elapsedMs : undefined;
}

/** Percent of the quota's periods in which the job was held back. */
function throttled(now: Usage, before: Usage | undefined): number | undefined {
  if (now.cpuPeriods === undefined) return undefined;
  const periods = Number(now.cpuPeriods - (before?.cpuPeriods ?? 0n));
  const held = Number((now.cpuThrottledPeriods ?? 0n) - (before?.cpuThrottledPeriods ?? 0n));
  return periods > 0 ? (100 * held) / periods : 0;
}

function rate(now: Usage, before: Usage | undefined, bytes: (usage: Usage) => bigint | undefined): bigint | undefined {
  const elapsedMs = toMs(now.elapsed) - toMs(before?.elapsed);
  const total = bytes(now);
  if (total === undefined || elapsedMs <= 0) return undefined;
  return BigInt(Math.round((Number(total - ((before && bytes(before)) ?? 0n)) * 1000) / elapsedMs));
}

function percent(value: number | undefined, digits = 0): string {
  return value === undefined ? "-" : `${value.toFixed(digits)}%`;
}

/** `12.3M`, `512K`: three digits and the unit's letter are enough in a column. */
function size(bytes: bigint | undefined): string {
  return bytes === undefined
    ? "-"
    : formatBytes(bytes)
        .replace(/(\d{3})\.\d/, "$1")
        .replace(/ ([KMGT])iB| B/, "$1");
}
