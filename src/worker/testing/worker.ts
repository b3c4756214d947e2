import { execFileSync, fork } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { setTimeout as delay } from "node:timers/promises";
import { crc32 } from "node:zlib";
import { AHEAD } from "../cgroup/groups-ahead.ts";
import { openHierarchy } from "../cgroup/hierarchy.ts";
import { type Source, startOf } from "../log/log.ts";
import type { Gap } from "../log/reader.ts";
import { JobError } from "../model/errors.ts";
import type { Job, JobSpec } from "../model/job.ts";
import type { UidRange, WorkerOptions } from "../model/options.ts";
import { SPARE } from "../supervisor/spare.ts";
import { openWorker, type Worker } from "../worker.ts";
import { isRoot } from "../../testing/root.ts";

const DEADLINE_MS = 20_000;

/** Runs jobs as nobody unless a test says otherwise, so that they share the host's /tmp with their test. */
function asNobody<T extends Partial<WorkerOptions>>(options: T): T {
  return isRoot && !options.jobUids ? { user: "nobody", ...options } : options;
}
/** The uid of such jobs: nobody's, or that of whoever runs the tests without root. */
export const jobUid = isRoot ? 65534 : (process.getuid?.() ?? 0);

/** A directory that jobs can read, too. */
export function testDirectory(): Disposable & { readonly path: string } {
  const path = mkdtempSync(join(tmpdir(), "jobs-test-"));
  chmodSync(path, 0o755);
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

/** A directory that is not a cgroup, for workers without cgroup. */
const NO_CGROUP = tmpdir();

function hostHasCgroups(): boolean {
  const host = openHierarchy(`jobs-test-${crypto.randomUUID().slice(0, 8)}`);
  if (host.kind === "none") return false;
  rmGroup(host.path);
  return true;
}

/** A range of `size` uids at random, so that tests that run side by side do not share any. */
export function someUids(size: number): UidRange {
  const first = 2_110_000_000 + 1000 * Math.floor(Math.random() * 30_000);
  return { first, last: first + size - 1 };
}

/** Removes an empty group. `rm` cannot, because of the files in it. */
export function rmGroup(path: string): void {
  execFileSync("rmdir", [path]);
}

/** The kinds of worker that this host can run: [name, options]. */
export const modes: readonly (readonly [string, Pick<WorkerOptions, "cgroup">])[] = [
  ["without cgroup", { cgroup: NO_CGROUP }],
  ...(hostHasCgroups() ? ([["with cgroup v2", {}]] as const) : []),
];

export interface TestWorker extends Worker, AsyncDisposable {
  readonly stateDir: string;
  /** The group above its jobs' groups, if it has one. */
  readonly cgroup: string | undefined;
  readonly logged: readonly string[];
  directory(id: string): string;
  /** Every trace of jobs, as `dir:ID`, `cgroup:ID` and `row:ID`. */
  traces(): string[];
}

/** A worker on a state directory of its own. Disposing kills its jobs and removes everything. */
export async function testWorker(options: Partial<WorkerOptions> = {}): Promise<TestWorker> {
  const stateDir = options.stateDir ?? mkdtempSync(join(tmpdir(), "jobs-state-"));
  const logged: string[] = [];
  const log = (level: string, message: string): unknown => logged.push(`${level}: ${message}`);
  const worker = await openWorker({ log, ...asNobody(options), stateDir }).catch((error: unknown) => {
    if (options.stateDir === undefined) rmSync(stateDir, { recursive: true, force: true });
    throw error;
  });
  const cgroup = /^cgroup v2 at (.+), controllers/.exec(worker.host)?.[1];
  let open = true;
  const groups = (): string[] => (cgroup === undefined ? [] : groupsIn(cgroup));
  async function close(): Promise<void> {
    if (open) await worker.close();
    open = false;
  }
  return {
    ...worker,
    stateDir,
    cgroup,
    logged,
    directory: (id) => join(stateDir, "jobs", id),
    traces() {
      const directories = jobDirectories(stateDir);
      const rows = worker.list({ limit: 1000 }).jobs.map(({ id }) => id);
      // Of the groups without a job, the newest ones are made ahead.
      const known = new Set([...directories, ...rows]);
      const ahead = new Set(
        groups()
          .filter((id) => !known.has(id))
          .slice(-AHEAD),
      );
      return [
        ...directories.map((id) => `dir:${id}`),
        ...groups().flatMap((id) => (ahead.has(id) ? [] : [`cgroup:${id}`])),
        ...rows.map((id) => `row:${id}`),
      ];
    },
    close,
    async [Symbol.asyncDispose]() {
      if (!open) {
        // A test that closed the worker and then failed may have left jobs that run.
        if (existsSync(stateDir)) await (await testWorker({ ...options, stateDir }))[Symbol.asyncDispose]();
        return;
      }
      const { jobs } = worker.list({ states: ["starting", "running", "stopping"], limit: 1000 });
      await Promise.all(jobs.map(({ id }) => worker.stop(id, { signal: 9, graceMs: 0, by: "the test's end" })));
      await close();
      // The spawner may be removing its own files.
      await until("the state directory is gone", () => {
        rmSync(stateDir, { recursive: true, force: true, maxRetries: 3 });
        return !existsSync(stateDir);
      });
      if (cgroup !== undefined && existsSync(cgroup)) throw new Error(`${cgroup} is left behind: ${groups().join()}`);
    },
  };
}

/** The groups below a group, oldest first. */
export function groupsIn(path: string): string[] {
  if (!existsSync(path)) return [];
  const entries = readdirSync(path, { withFileTypes: true });
  return entries.flatMap((entry) => (entry.isDirectory() ? [entry.name] : [])).toSorted();
}

/** The ids of jobs that have a directory. Names with a dot in front are the spawner's. */
export function jobDirectories(stateDir: string): string[] {
  return readdirSync(join(stateDir, "jobs")).filter((name) => !name.startsWith("."));
}

/** The smallest start. `sh("echo $0 $1", "a", "b")` is a script with arguments. */
export function run(command: string, ...args: string[]): JobSpec {
  return { command, args, owner: "tester" };
}
export function sh(script: string, ...args: string[]): JobSpec {
  return run("sh", "-c", script, ...args);
}

/** Changes jobs' records in a closed journal, as a worker would have written them: `update` is an UPDATE of SQL. */
export function changeRecords(stateDir: string, update: string, ...values: readonly (string | number)[]): void {
  using database = new DatabaseSync(join(stateDir, "journal.db"));
  database.function("crc32_of", (text) => crc32(String(text)));
  database.prepare(update).run(...values);
  database.exec("UPDATE jobs SET crc32 = crc32_of(job)");
}

/** A job that writes "ready" and runs until it is told to end. */
export const waits = sh("echo ready; exec sleep 1000");
/** A job that writes "ready" and ignores SIGTERM. */
export const ignoresTerm = sh(`trap "" TERM; echo ready; while :; do sleep 1000; done`);
/** A job with a grandchild in a session of its own, which writes its pid, closes the pipes and waits. */
export const detaches = sh(`setsid sh -c 'echo $$; exec sleep 1000 >&- 2>&-' & exec sleep 1000`);

/** Waits until `condition` returns something. After 20 s it throws, naming `what` it waited for. */
export async function until<T>(what: string, condition: () => T | undefined | false | null): Promise<T> {
  for (const deadline = Date.now() + DEADLINE_MS; Date.now() < deadline; await delay(3)) {
    const found = condition();
    if (found !== undefined && found !== false && found !== null) return found;
  }
  throw new Error(`waited in vain: ${what}`);
}

export interface Read {
  readonly text: string;
  readonly bytes: Buffer;
  readonly pieces: readonly {
    readonly source: Source;
    readonly offset: number;
    readonly text: string;
    readonly timeMs: number;
  }[];
  readonly gaps: readonly Gap[];
  readonly offset: number;
  readonly job: Job;
}

/** Reads a stream to its end. */
export async function readAll(stream: ReturnType<Worker["stream"]>): Promise<Read> {
  const buffers: Buffer[] = [];
  const pieces: Read["pieces"][number][] = [];
  const gaps: Gap[] = [];
  for (;;) {
    const { done, value } = await stream.next();
    if (done) {
      const bytes = Buffer.concat(buffers);
      return { ...value, bytes, text: bytes.toString(), pieces, gaps };
    }
    if (value.kind === "gap") {
      gaps.push(value);
      continue;
    }
    buffers.push(Buffer.from(value.bytes));
    const { source, offset, timeMs } = value;
    pieces.push({ source, offset, timeMs, text: value.bytes.toString("latin1") });
  }
}

/** Follows a job until it has written a whole line. Resolves to that line. */
export async function firstLine(worker: Worker, id: string): Promise<string> {
  let text = "";
  for await (const piece of worker.stream(id, { follow: true, source: "stdout" })) {
    if (piece.kind === "chunk") text += piece.bytes.toString();
    const end = text.indexOf("\n");
    if (end >= 0) return text.slice(0, end);
  }
  throw new Error(`the job ended and said no line, but ${JSON.stringify(text)}`);
}

/** Starts a job and waits for its first line. */
export async function startReady(
  worker: Worker,
  spec: JobSpec,
): Promise<{ readonly id: string; readonly pid: number; readonly line: string }> {
  const { job } = await worker.start(spec);
  return { id: job.id, pid: job.pid, line: await firstLine(worker, job.id) };
}

/** Runs a job to its end. */
export async function finished(worker: Worker, spec: JobSpec): Promise<Job & { readonly text: string }> {
  const { job } = await worker.start(spec);
  const { text, job: ended } = await readAll(worker.stream(job.id, { follow: true }));
  return { ...ended, text };
}

/** The pid on the host of the process that has the pid `inner` in a job; `pid` is the job's main process. */
export function outerPid(pid: number, inner: number): number {
  const namespace = readlinkSync(`/proc/${pid}/ns/pid`);
  const found = readdirSync("/proc").find((each) => {
    try {
      const status = /^\d+$/.test(each) ? readFileSync(`/proc/${each}/status`, "utf8") : "";
      return (
        /^NSpid:.*\t(\d+)$/m.exec(status)?.[1] === String(inner) && readlinkSync(`/proc/${each}/ns/pid`) === namespace
      );
    } catch {
      return false; // the process has ended
    }
  });
  if (found === undefined) throw new Error(`job ${pid} has no process ${inner}`);
  return Number(found);
}

export { JOB } from "./job.ts";
export { childrenOf, runs } from "../../testing/processes.ts";

/** The supervisor of the job in `directory`; 0 before the job has been exec'ed. */
export function supervisorOf(directory: string): number {
  return startOf({ directory })?.supervisor ?? 0;
}

/** The paths of the files that this process has open, but for the FIFOs of supervisors that wait for a job. */
export function openFiles(): string[] {
  const paths = openDescriptors().map(({ target }) => target);
  return paths.filter((path) => !path.includes(SPARE)).toSorted();
}

/** Lists this process's descriptors, and what each is open on. */
export function openDescriptors(): { readonly fd: string; readonly target: string }[] {
  return readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      return [{ fd, target: readlinkSync(`/proc/self/fd/${fd}`) }];
    } catch {
      return []; // the descriptor that lists them
    }
  });
}

/** Lets a script go on that waits with `until [ -e "$1" ]; do sleep 0.01; done`. */
export function open(gate: string): void {
  writeFileSync(gate, "");
}

/** Resolves to the JobError that a call throws. */
export async function refused(call: () => unknown): Promise<JobError> {
  try {
    await call();
  } catch (error) {
    if (error instanceof JobError) return error;
    throw error;
  }
  throw new Error("was not refused");
}

export interface TestDaemon extends AsyncDisposable {
  readonly pid: number;
  start(spec: JobSpec): Promise<Job>;
  /** Removes a job when it has ended. */
  remove(id: string): Promise<void>;
  readonly died: Promise<unknown>;
  /** Kills the daemon with SIGKILL. */
  kill(): Promise<void>;
}

/** A worker in a process of its own; daemon.ts is the program, and death.ts says what `death` is. */
export async function testDaemon(options: WorkerOptions, death = ""): Promise<TestDaemon> {
  const child = fork(join(import.meta.dirname, "daemon.ts"), {
    serialization: "advanced",
    execArgv: ["--import", join(import.meta.dirname, "death.ts")],
    env: { ...process.env, DEATH: death },
  });
  const exit = once(child, "exit");
  async function ask(message: object): Promise<unknown> {
    child.send(message);
    const died = exit.then(() => {
      throw new Error("the daemon has died");
    });
    const [answer]: unknown[] = await Promise.race([once(child, "message"), died]);
    return answer;
  }
  await ask(asNobody(options));
  const kill = async (): Promise<void> => {
    child.kill("SIGKILL");
    await exit;
  };
  return {
    pid: child.pid ?? 0,
    died: exit,
    async start(spec) {
      // The daemon answers with the job, or with an error.
      const answer = (await ask(spec)) as Job | Error;
      if (answer instanceof Error) throw answer;
      return answer;
    },
    async remove(id) {
      await ask({ remove: id });
    },
    kill,
    [Symbol.asyncDispose]: kill,
  };
}
