import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { crc32 } from "node:zlib";
import { State } from "../proto/generated/jobs/v1/worker.ts";
import type { Client, ListInput } from "../src/client/index.ts";
import { waitingJobs } from "./follow.ts";
import type { Bench, Daemon } from "./harness.ts";
import { rssKib } from "./proc.ts";
import { median, row, type Row } from "./report.ts";

const COUNT = 1_000_000;
const RUNNING = 100;
const RUNS = 5;
const STARTS = 100;
const PAGE = 100;
const MOST_READY_MS = 1500;
const MOST_LIST_MS = 5;
/** Of this many builds each job has one: a label that is rare. */
const BUILDS = 10_000;

/** Makes a state directory with `COUNT` jobs that have ended, whose logs are gone with their directories. */
async function manyRecords(bench: Bench): Promise<string> {
  await using daemon = await bench.startDaemon();
  const labels = new Map([
    ["build", "0"],
    ["team", "core"],
  ]);
  const { jobId: like } = await daemon.client.start({ command: "echo", args: ["done"], labels });
  await daemon.client.wait(like);
  await daemon[Symbol.asyncDispose]();
  using journal = new DatabaseSync(join(daemon.state, "journal.db"));
  const { seq: _seq, ...columns } = journal.prepare("SELECT * FROM jobs WHERE id = ?").get(like) ?? {};
  const names = Object.keys(columns);
  const insert = journal.prepare(`INSERT INTO jobs (${names.join()}) VALUES (${names.map(() => "?").join()})`);
  const label = journal.prepare("INSERT INTO labels VALUES (?, ?)");
  journal.exec("BEGIN");
  for (let i = 1; i <= COUNT; i++) {
    const id = like.slice(0, -7) + String(i).padStart(7, "0");
    const job = String(columns["job"]).replaceAll(like, id);
    const more = { id, job, crc32: crc32(job), ended_at: i, log: "pruned", log_at: i, log_why: "age" };
    const { lastInsertRowid: seq } = insert.run(...Object.values({ ...columns, ...more }));
    label.run(JSON.stringify(["build", String(i % BUILDS)]), seq);
    label.run(JSON.stringify(["team", "core"]), seq);
  }
  journal.exec("COMMIT");
  return daemon.state;
}

/** How a page is asked for. */
const FILTERS: readonly (readonly [string, ListInput])[] = [
  ["of all", {}],
  ["of those that ended", { states: [State.STATE_ENDED] }],
  ["of those with a label that all have", { labels: new Map([["team", "core"]]) }],
  ["of those with a rare label", { labels: new Map([["build", "7"]]) }],
  [
    "of those with both, that ended",
    {
      states: [State.STATE_ENDED],
      labels: new Map([
        ["team", "core"],
        ["build", "7"],
      ]),
    },
  ],
];

/** Resolves to the token of the page behind 100 pages of the longest kind, or of the last page. */
async function deep(client: Client, filter: ListInput): Promise<string> {
  let pageToken = "";
  for (let page = 0; page < 100; page++) {
    const { nextPageToken } = await client.list({ ...filter, limit: 1000, pageToken });
    if (nextPageToken === "") break;
    pageToken = nextPageToken;
  }
  return pageToken;
}

async function timed(call: () => Promise<unknown>, runs: number): Promise<number> {
  const times: number[] = [];
  for (let run = 0; run < runs; run++) {
    const beganMs = performance.now();
    await call();
    times.push(performance.now() - beganMs);
  }
  return median(times);
}

async function starts({ client }: Daemon): Promise<number> {
  // What a daemon compiles in its first seconds is not counted.
  await timed(async () => client.wait((await client.start({ command: "true" })).jobId), 300);
  const ids: string[] = [];
  return timed(async () => ids.push((await client.start({ command: "true" })).jobId), STARTS);
}

/** Starts a daemon, and resolves to it and to how long it took until a List was answered. */
async function ready(bench: Bench, state?: string): Promise<{ readonly daemon: Daemon; readonly ms: number }> {
  const beganMs = performance.now();
  // The daemon's own limits would have it remove these records meanwhile.
  const flags = ["--job-prune-count", String(2 * COUNT), "--job-prune-age", "0"];
  const daemon = await bench.startDaemon({ flags, ...(state !== undefined && { state }) });
  await daemon.client.list({ limit: 1 });
  return { daemon, ms: performance.now() - beganMs };
}

/** Measures what a million records of jobs that have ended cost: pages, starts, a restart, memory. */
export async function records(bench: Bench): Promise<Row[]> {
  const state = await manyRecords(bench);
  const first = await ready(bench, state);
  await waitingJobs(first.daemon.client, RUNNING);
  await first.daemon.kill();
  const empty = await ready(bench);
  const emptyStart = await starts(empty.daemon);
  const emptyList = await timed(() => empty.daemon.client.list({ limit: PAGE }), 20);
  const emptyMib = rssKib(empty.daemon.pid) / 1024;

  const restarts: number[] = [];
  let last = await ready(bench, state);
  for (let run = 1; run < RUNS; run++) {
    restarts.push(last.ms);
    await last.daemon.kill();
    last = await ready(bench, state);
  }
  const { client, pid } = last.daemon;
  const name = `With ${COUNT} records:`;
  const rows: Row[] = [
    row(`${name} from spawn, after a kill, until a List is answered`, median(restarts), "ms", ["empty", empty.ms], {
      text: `under ${MOST_READY_MS} ms`,
      met: median(restarts) < MOST_READY_MS,
    }),
    row("… the daemon's memory then (RSS)", rssKib(pid) / 1024, "MiB", ["empty", emptyMib]),
    row("… a start's median", await starts(last.daemon), "ms", ["empty", emptyStart]),
  ];
  for (const [what, filter] of FILTERS)
    for (const [where, pageToken] of [
      ["the first", ""],
      ["a deep", await deep(client, filter)],
    ] as const) {
      const ms = await timed(() => client.list({ ...filter, limit: PAGE, pageToken }), 20);
      rows.push(
        row(`… ${where} page of ${PAGE} ${what}`, ms, "ms", ["of 120 records", emptyList], {
          text: `under ${MOST_LIST_MS} ms`,
          met: ms < MOST_LIST_MS,
        }),
      );
    }
  return rows;
}
