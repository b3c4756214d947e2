import { copyFileSync, mkdirSync, readFileSync, statSync } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { zstdCompress } from "node:zlib";
import { LogCompression, LogPlace } from "../proto/generated/jobs/v1/worker.ts";
import type { Client } from "../src/client/index.ts";
import type { Bench } from "./harness.ts";
import { peakRssKib, rssKib } from "./proc.ts";
import { median, row, type Row } from "./report.ts";

/** 139 MB of text. */
const LINES = 16_500_000;
const RUNS = 3;
const POLL_MS = 5;
const MOST_GROWN_MIB = 48;

const OFF = LogCompression.LOG_COMPRESSION_OFF;
const ZSTD = LogCompression.LOG_COMPRESSION_ZSTD;

interface Ended {
  readonly jobId: string;
  readonly bytes: number;
  /** Time from the job's end until its log was compressed or archived. */
  readonly ms: number;
}

async function ended(client: Client, compression: LogCompression, archive: boolean, place: LogPlace): Promise<Ended> {
  const { jobId } = await client.start({
    command: "seq",
    args: [String(LINES)],
    log: { compression, archive },
  });
  const { job } = await client.wait(jobId);
  const beganMs = performance.now();
  for (;;) {
    const told = await client.query(jobId);
    if (told.job?.log?.place === place) break;
    await delay(POLL_MS);
  }
  return { jobId, bytes: Number(job?.output?.size), ms: performance.now() - beganMs };
}

/** Reads a job's output several times. Resolves to the median of the rates in MB/s. */
async function readRate(client: Client, { jobId, bytes }: Ended): Promise<number> {
  const rates: number[] = [];
  for (let run = 0; run < RUNS; run++) {
    const beganMs = performance.now();
    let count = 0;
    for await (const { output } of client.stream({ jobId })) count += output.length;
    if (count !== bytes) throw new Error(`${count} bytes came of ${bytes}`);
    rates.push(bytes / 1000 / (performance.now() - beganMs));
  }
  return median(rates);
}

async function tookMs(work: () => Promise<unknown>): Promise<number> {
  const beganMs = performance.now();
  await work();
  return performance.now() - beganMs;
}

/** Measures compressing and archiving a log, and reading it afterwards. */
export async function logs(bench: Bench): Promise<Row[]> {
  const archive = join(bench.directory, "archive");
  mkdirSync(archive);
  await using daemon = await bench.startDaemon({ flags: ["--archive", archive] });
  const { client, pid, state } = daemon;
  await client.list({ limit: 1 });
  const beforeMib = rssKib(pid) / 1024;
  const plain = await ended(client, OFF, false, LogPlace.LOG_PLACE_KEPT);
  const zstd = await ended(client, ZSTD, false, LogPlace.LOG_PLACE_COMPRESSED);
  const moved = await ended(client, OFF, true, LogPlace.LOG_PLACE_ARCHIVED);
  const both = await ended(client, ZSTD, true, LogPlace.LOG_PLACE_ARCHIVED);
  const peakMib = peakRssKib(pid) / 1024;
  const plainRate = await readRate(client, plain);
  const [zstdRate, movedRate, bothRate] = [
    await readRate(client, zstd),
    await readRate(client, moved),
    await readRate(client, both),
  ];

  const fileOf = ({ jobId }: Ended, name: string): string => join(state, "jobs", jobId, name);
  const content = readFileSync(fileOf(plain, "output"));
  const zlibMs = await tookMs(() => promisify(zstdCompress)(content));
  const copyMs = await tookMs(async () => {
    const target = join(bench.directory, "copy");
    copyFileSync(fileOf(plain, "output"), target);
    await using file = await open(target);
    await file.sync();
  });
  const mb = plain.bytes / 1e6;
  const rate = (ms: number): number => (mb / ms) * 1000;
  const name = `A log of ${mb.toFixed(0)} MB of text`;
  return [
    row(`${name}, compressed`, rate(zstd.ms), "MB/s", ["node:zlib, in one piece", rate(zlibMs)]),
    row("… what it takes then", statSync(fileOf(zstd, "output.zst")).size / 1e6, "MB", ["before", mb]),
    row("… reading it", zstdRate, "MB/s", ["reading it before", plainRate]),
    row(`${name}, archived to a directory`, rate(moved.ms), "MB/s", ["copied and synced", rate(copyMs)]),
    row("… reading it from there", movedRate, "MB/s", ["reading it before", plainRate]),
    row("… reading it from there, compressed", bothRate, "MB/s", ["reading it before", plainRate]),
    row("The daemon's memory (RSS) while it compresses and archives, at most", peakMib, "MiB", ["before", beforeMib], {
      text: `at most ${MOST_GROWN_MIB} MiB more`,
      met: peakMib - beforeMib <= MOST_GROWN_MIB,
    }),
  ];
}
