import type { Bench, Daemon } from "./harness.ts";
import { followers, waitingJobs } from "./follow.ts";
import { parentOf, pssKib } from "./proc.ts";
import { row, type Row } from "./report.ts";

const COUNT = 1000;
const WARM_UP = 100;

async function settledKib(daemon: Daemon): Promise<number> {
  await daemon.collect();
  return pssKib(daemon.pid);
}

/** Measures the memory that 1,000 running jobs, and then a follower of each, add to the daemon; and that of each supervisor. */
export async function memory(bench: Bench): Promise<Row[]> {
  await using daemon = await bench.startDaemon({ preload: { heapMb: 0 } });
  const { client } = daemon;
  // What the first few bring, such as compiled code, is not counted for each.
  await (await followers(client, await waitingJobs(client, WARM_UP)))[Symbol.asyncDispose]();
  const idle = await settledKib(daemon);
  const jobs = await waitingJobs(client, COUNT);
  const withJobs = await settledKib(daemon);
  const pids = (await client.list({ limit: COUNT })).jobs.map(({ pid }) => pid);
  const supervisors = pids.reduce((sum, pid) => sum + pssKib(parentOf(pid)), 0) / pids.length;
  const processes = pids.reduce((sum, pid) => sum + pssKib(pid), 0) / pids.length;
  await using _following = await followers(client, jobs);
  const withFollowers = await settledKib(daemon);
  return [
    row(`Daemon's memory per running job, at ${COUNT}`, (withJobs - idle) / COUNT, "KiB", [
      "all of the daemon before",
      idle,
    ]),
    row(`Supervisor's memory per running job, at ${COUNT}`, supervisors, "KiB", ["the job itself, a sleep", processes]),
    row(`Daemon's memory per follower, at ${COUNT}`, (withFollowers - withJobs) / COUNT, "KiB", [
      "all of the daemon before",
      idle,
    ]),
  ];
}
