import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { Bench, Daemon } from "./harness.ts";
import { rssKib } from "./proc.ts";
import { format, median, row, type Row } from "./report.ts";
import { callsOn, manyAtOnce } from "./start.ts";

const JOBS = 5000;
const STEPS = 10;
/** The share of the jobs that runs before anything is measured: what these bring, such as compiled code, is not a leak. */
const WARM_UP = 0.2;
const QUIET_MS = 20;
const QUIET_TRIES = 250;
const LEAST_AS_FAST = 0.85;
const MOST_GROWN_MIB = 2;

/** The resources of a daemon that has nothing to do. */
export interface Held {
  readonly descriptors: number;
  /** Descriptors of its spawner. */
  readonly spawnerDescriptors: number;
  /** Directories below the worker's cgroup; 0 when the host has no cgroup v2. */
  readonly cgroups: number;
  /** Descendants, which are the spawner and its spares; and how many of them are zombies. */
  readonly processes: number;
  readonly zombies: number;
}

/** The children of each process, and which are zombies: proc_pid_stat(5). */
function processes(): {
  readonly children: ReadonlyMap<number, readonly number[]>;
  readonly zombies: ReadonlySet<number>;
} {
  const children = new Map<number, number[]>();
  const zombies = new Set<number>();
  for (const name of readdirSync("/proc")) {
    const pid = Number(name);
    if (!(pid > 0)) continue;
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
      const [state, parent] = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
      children.set(Number(parent), [...(children.get(Number(parent)) ?? []), pid]);
      if (state === "Z") zombies.add(pid);
    } catch {
      // The process has ended.
    }
  }
  return { children, zombies };
}

function held(pid: number, group: string): Held {
  const { children, zombies } = processes();
  const below: number[] = [];
  for (const found = [pid]; found.length > 0;) {
    const more = children.get(found.pop() ?? 0) ?? [];
    below.push(...more);
    found.push(...more);
  }
  const descriptors = (of: number): number => readdirSync(`/proc/${of}/fd`).length;
  // Nobody but root may look into the spawner.
  const isSeen = process.getuid?.() === 0;
  const [spawner = 0] = children.get(pid) ?? [];
  const groups = group === "" ? [] : readdirSync(group, { recursive: true, withFileTypes: true });
  return {
    descriptors: descriptors(pid),
    spawnerDescriptors: isSeen ? descriptors(spawner) : 0,
    cgroups: groups.filter((entry) => entry.isDirectory()).length,
    processes: below.length,
    zombies: below.filter((each) => zombies.has(each)).length,
  };
}

/** Waits until the daemon holds `expected`. Resolves to what it holds, which differs when that never comes. */
async function quiet(bench: Bench, { pid }: Daemon, expected?: Held): Promise<Held> {
  let now = held(pid, bench.group);
  for (let i = 0; i < QUIET_TRIES; i++) {
    await delay(QUIET_MS);
    const before = JSON.stringify(now);
    now = held(pid, bench.group);
    if (JSON.stringify(now) === (expected ? JSON.stringify(expected) : before)) break;
  }
  return now;
}

/** The result of one step of a soak. */
export interface Step {
  readonly jobsPerS: number;
  /** The daemon's resources when the step's jobs had ended. */
  readonly held: Held;
  readonly inUseMib: number;
  readonly rssMib: number;
}

/** Runs many jobs of /bin/true, 32 in flight: a fifth of them to warm up, whose end is `before`, and then the steps. */
export async function soaked(
  bench: Bench,
  daemon: Daemon,
  { jobs, steps, between }: { jobs: number; steps: number; between?: (count: number) => void },
): Promise<{ readonly before: Held; readonly steps: readonly Step[] }> {
  using calls = callsOn(daemon.credentials);
  await daemon.collect(); // opens the connection
  await manyAtOnce(calls, jobs * WARM_UP);
  const before = await quiet(bench, daemon);
  const found: Step[] = [];
  const count = (jobs * (1 - WARM_UP)) / steps;
  for (let step = 0; step < steps; step++) {
    const jobsPerS = await manyAtOnce(calls, count);
    const after = await quiet(bench, daemon, before);
    const inUseMib = (await daemon.collect()) / 2 ** 20;
    found.push({ jobsPerS, held: after, inUseMib, rssMib: rssKib(daemon.pid) / 1024 });
    between?.(count);
  }
  return { before, steps: found };
}

/** Makes directories with a job's files, as many as jobs, to learn the file system's part. Returns how many per second. */
function floor(directory: string, count: number): number {
  const beganMs = performance.now();
  for (let i = 0; i < count; i++) {
    const path = join(directory, crypto.randomUUID());
    mkdirSync(path);
    for (const name of ["control", "output", "index", "exit"]) writeFileSync(join(path, name), "");
  }
  return (count / (performance.now() - beganMs)) * 1000;
}

/** Runs JOBS_BENCH_SOAK short jobs through one daemon: measures its resources and its speed at the beginning and at the end. */
export async function soak(bench: Bench): Promise<Row[]> {
  const jobs = Number(process.env["JOBS_BENCH_SOAK"] ?? JOBS);
  await using daemon = await bench.startDaemon({ preload: { heapMb: 0 } });
  const beside = join(bench.directory, "soak-floor");
  mkdirSync(beside);
  const floors: number[] = [];
  const between = (count: number): void => void floors.push(floor(beside, count));
  const { before, steps } = await soaked(bench, daemon, { jobs, steps: STEPS, between });

  const third = Math.ceil(STEPS / 3);
  const thirds = (values: readonly number[]): readonly [first: number, last: number] => [
    median(values.slice(0, third)),
    median(values.slice(-third)),
  ];
  const [firstPerS, lastPerS] = thirds(steps.map(({ jobsPerS }) => jobsPerS));
  const [firstFloor, lastFloor] = thirds(floors);
  const [firstMib, lastMib] = thirds(steps.map(({ inUseMib }) => inUseMib));
  const [firstRss, lastRss] = thirds(steps.map(({ rssMib }) => rssMib));
  const own = lastFloor / firstFloor;
  const flat = steps.every((step) => JSON.stringify(step.held) === JSON.stringify(before));
  const { descriptors, spawnerDescriptors, cgroups, processes: running, zombies } = before;
  const text = `flat in ${STEPS} steps: ${descriptors}, spawner's ${spawnerDescriptors}, ${cgroups} cgroups, ${running} processes, ${zombies} zombies`;
  return [
    row(`Soak of ${jobs} short jobs, last third`, lastPerS, "jobs/s", ["first third", firstPerS], {
      text: `at least ${LEAST_AS_FAST}, less if the file system becomes slower (to ${format(own)})`,
      met: lastPerS / firstPerS >= LEAST_AS_FAST * Math.min(1, own),
    }),
    row("… the daemon's memory in use when quiet, last third", lastMib, "MiB", ["first third", firstMib], {
      text: `at most ${MOST_GROWN_MIB} MiB more`,
      met: lastMib - firstMib <= MOST_GROWN_MIB,
    }),
    row("… and what it has of the host (RSS), last third", lastRss, "MiB", ["first third", firstRss]),
    row("… its descriptors, when quiet", steps.at(-1)?.held.descriptors ?? 0, "", ["before", descriptors], {
      text,
      met: flat,
    }),
  ];
}
