import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { State } from "../proto/generated/jobs/v1/worker.ts";
import { ClientError } from "../src/client/errors.ts";
import { waitingJobs } from "./follow.ts";
import type { Bench, Daemon } from "./harness.ts";
import { rssKib } from "./proc.ts";
import { median, row, type Row } from "./report.ts";

const FINISHED = 100_000;
const RUNNING = 100;
const RUNS = 5;
const PAGE = 100;
const MOST_MS = 1000;
const MOST_MIB = 150;
const MKFIFO_PATHS = 1000;

/** Makes a state directory with one job that has ended. Resolves to it and the job's id. */
async function oneFinished(bench: Bench): Promise<{ readonly state: string; readonly jobId: string }> {
  await using daemon = await bench.startDaemon();
  const { jobId } = await daemon.client.start({ command: "echo", args: ["done"] });
  await daemon.client.wait(jobId);
  return { state: daemon.state, jobId };
}

/** Copies the row and the files of job `like` to `count` jobs with new ids. */
function multiply(state: string, like: string, count: number): void {
  using journal = new DatabaseSync(join(state, "journal.db"));
  const { seq: _seq, ...row } = journal.prepare("SELECT * FROM jobs WHERE id = ?").get(like) ?? {};
  const columns = Object.keys(row);
  const insert = journal.prepare(`INSERT INTO jobs (${columns.join()}) VALUES (${columns.map(() => "?").join()})`);
  journal.exec("BEGIN");
  const jobs = join(state, "jobs");
  const entries = readdirSync(join(jobs, like), { withFileTypes: true });
  const files = entries
    .filter((entry) => entry.isFile())
    .map(({ name }) => ({ name, content: readFileSync(join(jobs, like, name)) }));
  const fifos = entries.filter((entry) => entry.isFIFO()).map(({ name }) => name);
  let missing: string[] = [];
  for (let left = count; left > 0; left--) {
    // An id keeps its time, so that the copies sort between the job and those that come.
    const id = like.slice(0, -String(count).length) + String(left).padStart(String(count).length, "0");
    const directory = join(jobs, id);
    mkdirSync(directory, { mode: 0o700 });
    for (const { name, content } of files) writeFileSync(join(directory, name), content, { mode: 0o600 });
    missing.push(...fifos.map((name) => join(directory, name)));
    if (missing.length >= MKFIFO_PATHS || left === 1) execFileSync("mkfifo", ["-m", "600", ...missing.splice(0)]);
    const values = Object.values(row).map((value) => (typeof value === "string" ? value.replaceAll(like, id) : value));
    insert.run(...values);
  }
  journal.exec("COMMIT");
}

/** What one restart cost. */
interface Restarted {
  /** Time from spawn until a Query was answered. */
  readonly ms: number;
  /** Resident memory then, and after a List of a page. */
  readonly readyMib: number;
  readonly pageMib: number;
}

/** Starts a daemon on `state`, queries `jobId`, which need not exist, lists a page, and kills the daemon. */
async function restarted(bench: Bench, state: string, jobId: string): Promise<Restarted> {
  const beganMs = performance.now();
  const daemon = await bench.startDaemon({ state });
  await daemon.client.query(jobId).catch((error: unknown) => {
    if (!(error instanceof ClientError && error.code === "NOT_FOUND")) throw error;
  });
  const ms = performance.now() - beganMs;
  const readyMib = rssKib(daemon.pid) / 1024;
  await daemon.client.list({ limit: PAGE });
  const pageMib = rssKib(daemon.pid) / 1024;
  await daemon.kill();
  return { ms, readyMib, pageMib };
}

/** Throws unless all running jobs are found again and can be stopped. */
async function checkFound({ client }: Daemon, running: readonly string[]): Promise<void> {
  const found = await client.list({ states: [State.STATE_RUNNING], limit: RUNNING + 1 });
  const ids = found.jobs.map(({ id }) => id);
  if (ids.toSorted().join() !== running.toSorted().join())
    throw new Error(`of ${running.length} running jobs ${ids.length} were found`);
  const ended = await Promise.all(running.map(async (jobId) => (await client.stop({ jobId })).job?.ended?.how?.$case));
  const stopped = ended.filter((each) => each === "stopped").length;
  if (stopped !== RUNNING) throw new Error(`${stopped} of ${RUNNING} jobs were stopped`);
}

/** Measures restarts of a killed daemon with 100,000 jobs that have ended and 100 that run. */
export async function restart(bench: Bench): Promise<Row[]> {
  const { state, jobId } = await oneFinished(bench);
  multiply(state, jobId, FINISHED);
  const before = await bench.startDaemon({ state });
  const running = await waitingJobs(before.client, RUNNING);
  await before.kill();
  const other = await bench.startDaemon();
  await other.kill();

  const empty: Restarted[] = [];
  const full: Restarted[] = [];
  for (let run = 0; run < RUNS; run++) {
    empty.push(await restarted(bench, other.state, jobId));
    full.push(await restarted(bench, state, running[run] ?? ""));
  }
  await using last = await bench.startDaemon({ state });
  await checkFound(last, running);

  const of = (runs: readonly Restarted[], what: keyof Restarted): number => median(runs.map((each) => each[what]));
  const name = `Restart with ${FINISHED} finished and ${RUNNING} running jobs`;
  const mostMib = Math.max(...full.map(({ pageMib }) => pageMib));
  return [
    row(`${name}, until a Query is answered`, of(full, "ms"), "ms", ["empty state directory", of(empty, "ms")], {
      text: `under ${MOST_MS} ms`,
      met: of(full, "ms") < MOST_MS,
    }),
    row("… the daemon's memory then (RSS)", of(full, "readyMib"), "MiB", ["empty", of(empty, "readyMib")]),
    row(`… and after a List of ${PAGE}`, of(full, "pageMib"), "MiB", ["empty", of(empty, "pageMib")], {
      text: `under ${MOST_MIB} MiB`,
      met: mostMib < MOST_MIB,
    }),
  ];
}
