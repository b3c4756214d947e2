import { execFileSync } from "node:child_process";
import {
  chmodSync,
  chownSync,
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { removeGroup } from "../../worker/cgroup/group.ts";
import { openHierarchy, ownGroup } from "../../worker/cgroup/hierarchy.ts";
import type { Launch } from "../../worker/supervisor/frame.ts";
import type { Part } from "../../worker/model/isolation.ts";
import { type Isolation, isolationOf } from "../../worker/supervisor/isolation.ts";
import { SPARE } from "../../worker/supervisor/spare.ts";
import { openSpawner, type Spawner } from "../../worker/supervisor/spawner.ts";
import { credentialsOf } from "../../worker/system/users.ts";
import { isRoot } from "../../testing/root.ts";
import { childrenOf, marked, runs, soon, until } from "../../testing/processes.ts";
import { type Exit, order, readExit, readLog } from "./records.ts";

const HERE = join(import.meta.dirname, "..");

// Test files run at the same time; one of them builds.
execFileSync("flock", [HERE, "make", "--silent", "--directory", HERE, "all", "sanitized"]);
export const BINARIES = {
  hardened: join(HERE, "../../build/supervisor"),
  sanitized: join(HERE, "../../build/supervisor-sanitized"),
} as const;

/** The credentials of jobs: nobody's where the tests run as root, otherwise their own. */
export const CREDENTIALS = { ...credentialsOf(isRoot ? "nobody" : String(process.getuid?.())), change: isRoot };
/** A job that has its supervisor's user. */
export const OWN = {
  credentials: isRoot ? { ...CREDENTIALS, user: "root", group: "root", uid: 0, gid: 0, groups: [0] } : CREDENTIALS,
};
/** A job of unprivilegedRig(): that has nobody's user, as its spawner. */
export const UNPRIVILEGED = { cgroup: "", credentials: { ...CREDENTIALS, change: false } };

// Named as parent it is left as it is: tests need no controllers.
const probed = openHierarchy(`supervisor-test-${process.pid}`, ownGroup() ?? "/sys/fs/cgroup");
if (probed.kind === "cgroup2") await removeGroup(probed.path);
const modes =
  probed.kind === "cgroup2" ? (["descent", "cgroup", "isolated"] as const) : (["descent", "isolated"] as const);
process.stdout.write(
  `supervisor tests run in mode ${modes.join(" and ")}${probed.kind === "none" ? `, without cgroups: ${probed.reason}` : ""}\n`,
);

export interface Variant {
  /** How the supervisor finds a job's processes; those of a pid namespace have all isolation, and a cgroup. */
  readonly mode: "descent" | "cgroup" | "isolated";
  readonly build: keyof typeof BINARIES;
}
/** The variants that every test of the supervisor must hold for. */
export const variants: readonly Variant[] = modes.flatMap((mode) => [
  { mode, build: "hardened" },
  { mode, build: "sanitized" },
]);
/** The isolation that a daemon asks for. */
export const FULL = isolationOf({}, probed);
/** All parts but these. */
export function without(...parts: readonly Part[]): Set<Part> {
  return new Set([...FULL.wanted].filter((part) => !parts.includes(part)));
}
/** The isolation that a daemon without root asks for, in a group that it may not write. */
export const ROOTLESS: ReadonlySet<Part> = new Set<Part>([...without("cgroup"), "user"]);
const LEAST: Isolation = { ...FULL, wanted: new Set(["no-new-privileges", "no-capabilities"]) };
export const hardened = variants.filter(({ build }) => build === "hardened");

export interface Job {
  readonly pid: number;
  readonly supervisor: number;
  readonly directory: string;
  /** "" where it has none. */
  readonly cgroup: string;
  /** Resolves when the spawner says that the supervisor is no more. */
  readonly gone: Promise<void>;
  /** The exit record, once the supervisor is gone. */
  readonly ended: () => Promise<Exit>;
  readonly output: () => string;
  /** Resolves once the job has written `text`. */
  readonly wrote: (text: string) => Promise<void>;
  readonly stop: (signal: NodeJS.Signals, graceMs: number) => void;
}

/** The job to run: a script of sh unless `argv` is given. */
export type Spec = Partial<Omit<Launch, "env">> & {
  readonly script?: string;
  readonly env?: Readonly<Record<string, string>>;
};

/** A spawner with a directory, and a cgroup in that mode, of its own. Disposal proves that nothing stays. */
export interface Rig extends AsyncDisposable {
  readonly directory: string;
  /** The directory of the jobs' directories. */
  readonly jobs: string;
  readonly spawner: Spawner;
  /** The messages that the spawner's owner has been told. */
  readonly logged: readonly string[];
  /** The arguments of programs/daemon.ts that follow a supervisor: a launch and an isolation. */
  readonly daemon: (launch: Launch) => string[];
  /** The pid of the spawner's process; known once something has been started. */
  readonly pid: () => number;
  readonly start: (spec: Spec) => Promise<Job>;
  readonly launchOf: (spec: Spec) => Launch;
  /** The exit record of a job that runs by itself. */
  readonly run: (spec: Spec) => Promise<{ readonly exit: Exit; readonly job: Job }>;
  /** Lets one `read x < "$CUE"` of a job go on. */
  readonly cue: () => void;
}

/** Writes the script that becomes the spawner's process, after `prelude`, which is in sh. Returns its path. */
function wrap(directory: string, build: Variant["build"], prelude: string): string {
  const path = join(directory, "spawner");
  const reports = join(directory, "reports");
  mkdirSync(reports);
  chmodSync(reports, 0o1777);
  const options = `log_path=${join(reports, "report")}`;
  const script = `#!/bin/sh
${prelude}
export ASAN_OPTIONS=${options} UBSAN_OPTIONS=${options}:print_stacktrace=1
echo $$ > ${directory}/child-of-$PPID
exec ${BINARIES[build]} "$@"
`;
  writeFileSync(path, script, { mode: 0o755 });
  return path;
}

function expectNothing(found: readonly unknown[], what: string): void {
  if (found.length > 0) throw new Error(`${what}: ${found.join(", ")}`);
}

function endAll(jobs: ReadonlySet<Job>): Promise<PromiseSettledResult<void>[]> {
  for (const job of jobs) if (runs(job.supervisor)) job.stop("SIGKILL", 0);
  return Promise.allSettled(Array.from(jobs, (job) => soon(job.gone, `job ${job.pid} is gone`)));
}

/** Supervisors that have, or had, a job; others are spares. */
export function supervisorsOf(it: Pick<Rig, "pid" | "jobs">): number[] {
  return childrenOf(it.pid()).filter((pid) => !existsSync(join(it.jobs, `${SPARE}${pid}`)));
}

/** The errors that the sanitizers reported. Their warnings do not count: ASan does not know a child of clone3. */
export function sanitizerErrors(reports: string): string[] {
  return readdirSync(reports)
    .map((name) => readFileSync(join(reports, name), "utf8"))
    .filter((report) => /ERROR|runtime error/.test(report));
}

/** The parts of a launch that a spec leaves out. */
const PLAIN = {
  cwd: "/",
  credentials: CREDENTIALS,
  timeLimitMs: 0,
  graceMs: 0,
  logLimitBytes: 0,
  logKeep: "newest",
  network: "host",
  privateTmp: false,
  mergeOutput: false,
  userNamespaces: false,
  rlimits: [],
  umask: 0o022,
  oomScoreAdj: 0,
} as const satisfies Partial<Launch>;

/** Starts a job, which is in `started` until its end has been waited for. */
async function startJob(spawner: Spawner, launch: Launch, started: Set<Job>): Promise<Job> {
  const { promise: gone, resolve } = Promise.withResolvers<void>();
  const pid = await spawner.launch(
    launch,
    () => {},
    () => resolve(),
  );
  const job: Job = {
    pid,
    supervisor: readLog(launch.directory).supervisor,
    directory: launch.directory,
    cgroup: launch.cgroup,
    gone,
    async ended() {
      await soon(gone, `job ${pid} is gone`);
      started.delete(job);
      if (launch.cgroup) await removeGroup(launch.cgroup);
      return readExit(launch.directory);
    },
    output: () => readFileSync(join(launch.directory, "output"), "latin1"),
    wrote: (text) => until(() => job.output().includes(text), `the job writes ${JSON.stringify(text)}`),
    stop: (signal, graceMs) => order(launch.directory, signal, graceMs),
  };
  started.add(job);
  return job;
}

/** Ends the jobs and the spawner. Throws Error where processes outlive them, or the sanitizers have reported errors. */
async function close(directory: string, spawner: Spawner, started: ReadonlySet<Job>, group: string): Promise<void> {
  const ends = await endAll(started);
  await until(() => existsSync(pidFile(directory)), "the spawner has begun");
  const pid = spawnerOf(directory);
  spawner[Symbol.dispose]();
  await until(() => !runs(pid), "the spawner ends with its daemon");
  // The spares of a spawner that was killed end when they hear of it.
  await until(() => marked(directory).length === 0, "nothing runs").catch(() => {});
  const left = marked(directory);
  for (const stray of left) process.kill(stray, "SIGKILL");
  if (group) await removeGroup(group);
  const errors = sanitizerErrors(join(directory, "reports"));
  rmSync(directory, { recursive: true });
  for (const end of ends) if (end.status === "rejected") throw end.reason;
  expectNothing(errors, "sanitizers");
  expectNothing(left, "processes outlived the test");
}

/** The file in which the script that becomes the spawner writes its pid. */
function pidFile(directory: string): string {
  return join(directory, `child-of-${process.pid}`);
}

function spawnerOf(directory: string): number {
  return Number(readFileSync(pidFile(directory), "utf8"));
}

/** Opens a rig. Jobs' directories are made in `own.jobs`, or in the rig's directory. */
export async function rig(
  { mode, build }: Variant,
  own: { prelude?: string; jobs?: string; isolation?: Partial<Isolation> } = {},
): Promise<Rig> {
  const directory = mkdtempSync(join(tmpdir(), "supervisor-"));
  chmodSync(directory, 0o755);
  const { jobs = directory, prelude = "" } = own;
  const cuePath = join(directory, "cue");
  execFileSync("mkfifo", ["-m", "666", cuePath]);
  const cue = openSync(cuePath, "r+"); // a FIFO's both ends: neither side waits for the other
  const group = mode !== "descent" && probed.kind === "cgroup2" ? join(dirname(probed.path), basename(directory)) : "";
  if (group) mkdirSync(group);
  const isolation = { ...(mode === "isolated" ? FULL : LEAST), ...own.isolation };
  const logged: string[] = [];
  const told = (message: string): unknown => logged.push(message);
  const spawner = openSpawner(wrap(directory, build, prelude), jobs, isolation, told);
  const started = new Set<Job>();
  let count = 0;

  function launchOf({ script = "", env, ...rest }: Spec): Launch {
    const name = `job-${++count}`;
    const made = { directory: join(jobs, name), cgroup: group && join(group, name) };
    if (rest.cgroup === undefined && group) mkdirSync(made.cgroup);
    const variables = env ?? { PATH: "/usr/bin:/bin", CUE: cuePath, RIG: directory };
    return { ...PLAIN, ...made, argv: ["sh", "-c", script], env: new Map(Object.entries(variables)), ...rest };
  }

  const start = (spec: Spec): Promise<Job> => startJob(spawner, launchOf(spec), started);
  return {
    directory,
    jobs,
    spawner,
    logged,
    pid: () => spawnerOf(directory),
    launchOf,
    daemon: (launch) => [
      JSON.stringify({ ...launch, env: Object.fromEntries(launch.env) }),
      JSON.stringify({ ...isolation, wanted: [...isolation.wanted] }),
    ],
    start,
    async run(spec) {
      const job = await start(spec);
      return { exit: await job.ended(), job };
    },
    cue: () => writeSync(cue, "\n"),
    async [Symbol.asyncDispose]() {
      try {
        await close(directory, spawner, started, group);
      } finally {
        closeSync(cue);
      }
    },
  };
}

/** A rig of root's whose spawner is nobody's, and its jobs with it. */
export async function unprivilegedRig(variant: Variant, isolation: Partial<Isolation>): Promise<Rig> {
  const jobs = mkdtempSync("/var/tmp/jobs-nobody-");
  const { uid, gid } = CREDENTIALS;
  chownSync(jobs, uid, gid);
  const change = `chown ${uid}:${gid} "$(dirname "$0")"; exec setpriv --reuid=${uid} --regid=${gid} --clear-groups`;
  const prelude = `if [ $(id -u) = 0 ]; then ${change} sh "$0" "$@"; fi`;
  const it = await rig(variant, { prelude, jobs, isolation });
  return {
    ...it,
    async [Symbol.asyncDispose]() {
      await it[Symbol.asyncDispose]();
      rmSync(jobs, { recursive: true });
    },
  };
}

/** Runs `count` jobs, 32 at a time. */
export async function inFlight(count: number, run: (n: number) => Promise<void>): Promise<void> {
  let next = 0;
  await Promise.all(
    Array.from({ length: 32 }, async () => {
      while (next < count) await run(next++);
    }),
  );
}

/** Builds a program of programs/ into the rig's directory. */
export function compile(name: string, { directory }: Pick<Rig, "directory">): string {
  const path = join(directory, name);
  execFileSync("cc", ["-O1", "-pthread", "-o", path, join(HERE, "programs", `${name}.c`)]);
  return path;
}
