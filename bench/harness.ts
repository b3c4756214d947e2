import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  closeSync,
  existsSync,
  globSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { issueAll } from "../certs/issue.ts";
import { State } from "../proto/generated/jobs/v1/worker.ts";
import { connect, type Client, type Credentials } from "../src/client/index.ts";
import { openWorker } from "../src/worker/index.ts";

const ROOT = join(import.meta.dirname, "..");
const EXIT_TIMEOUT_MS = 15_000;
const run = promisify(execFile);

/** A daemon in a process of its own. Disposing ends its jobs and the daemon; its state stays until the benchmarks end. */
export interface Daemon extends AsyncDisposable {
  readonly pid: number;
  /** Its state directory. */
  readonly state: string;
  /** The credentials of a writer. */
  readonly credentials: Credentials;
  /** A writer's connection. */
  readonly client: Client;
  /** Collects the daemon's garbage. Resolves to the bytes still in use, inside and outside of its heap. Needs `preload`. */
  collect(): Promise<number>;
  /** Kills the daemon with SIGKILL; its jobs go on. */
  kill(): Promise<void>;
}

export interface DaemonOptions {
  /** The state directory of an earlier daemon, which has ended; a new one when absent. */
  readonly state?: string;
  /** More flags of jobsd. */
  readonly flags?: readonly string[];
  /** A group of this name holds the daemon and its jobs, and nothing else. */
  readonly ownGroup?: string;
  /** Loads preload.ts into the daemon, which then holds `heapMb` megabytes of live heap more. */
  readonly preload?: { readonly heapMb: number };
}

/** What the benchmarks share. Disposing ends every process and removes every file and cgroup. */
export interface Bench extends AsyncDisposable {
  /** Where everything is written; jobs can read it, too. */
  readonly directory: string;
  /** The cgroup above everything that runs; "" when the host has no cgroup v2. */
  readonly group: string;
  /** A line about this host. */
  readonly host: string;
  /** The path of a PEM file: "ca.crt", "worker.key". */
  readonly pem: (name: string) => string;
  startDaemon(options?: DaemonOptions): Promise<Daemon>;
  /** Compiles bench/NAME.c; resolves to the program's path. */
  compile(name: string): Promise<string>;
  /** Makes sure that a process ends with the benchmarks at the latest. */
  adopt<Child extends ChildProcess>(child: Child): Child;
}

/** The Node that bin/jobsctl and bin/jobsd run on. */
export function node(): string {
  const [path] = globSync(join(ROOT, "node_modules/node-linux-*/bin/node"));
  if (path === undefined) throw new Error("Node 26 is not installed here: run npm ci");
  return path;
}

/** Path of a file of the checkout. */
export function checkout(path: string): string {
  return join(ROOT, path);
}

/** The built files that are missing. */
export function unbuilt(): string[] {
  return ["dist/jobsctl.js", "dist/jobsd.js", "build/supervisor"].filter((path) => !existsSync(checkout(path)));
}

/**
 * Makes a directory, certificates as in production, and a cgroup if the host has cgroup v2.
 *
 * @param fromSource for tests: daemons run from source instead of the built bundle, and keys are small
 */
export async function openBench({ fromSource = false } = {}): Promise<Bench> {
  await using opening = new AsyncDisposableStack();
  // Jobs of a daemon that is root have a /tmp of their own, and must see this directory.
  const directory = mkdtempSync(
    join(process.getuid?.() === 0 ? (process.env["TMPDIR"] ?? "/var/lib") : tmpdir(), "jobs-bench-"),
  );
  opening.defer(() => rm(directory, { recursive: true, force: true, maxRetries: 10 }));
  chmodSync(directory, 0o755);
  const disk = await diskOf(directory, opening);
  const group = await makeGroup(join(directory, "probe"));
  if (group !== "") opening.defer(() => removeGroup(group));
  const certs = join(directory, "certs");
  await issueAll({ out: certs, ...(fromSource && { bits: 2048 }) });
  const pem = (name: string): string => join(certs, name);

  const { adopt } = opening.use(openChildren());
  const daemons = new Set<Daemon>();
  let count = 0;
  opening.defer(async () => {
    await Promise.allSettled([...daemons].map((daemon) => daemon[Symbol.asyncDispose]()));
  });
  const disposal = opening.move();
  return {
    directory,
    group,
    host: `cgroup v2: ${group === "" ? "none" : group}; state in ${directory} on ${disk}`,
    pem,
    adopt,
    async startDaemon(options = {}) {
      const program = fromSource ? ([node(), checkout("cli/jobsd.ts")] as const) : ([checkout("bin/jobsd")] as const);
      const daemon = await startDaemon(
        { directory, group, pem, adopt, program },
        `daemon-${process.pid}-${++count}`,
        options,
      );
      daemons.add(daemon);
      return daemon;
    },
    async compile(name) {
      const program = join(directory, name);
      const args = ["-O2", "-o", program, checkout(`bench/${name}.c`)];
      // Static, as the supervisor is: a static program forks and starts faster.
      await run("cc", ["-static", ...args]).catch(() => run("cc", args));
      return program;
    },
    [Symbol.asyncDispose]: () => disposal.disposeAsync(),
  };
}

/**
 * Resolves to the kind of file system that a directory is on. Where that is ext4 without a journal, root mounts a tmpfs over
 * it: such an ext4 looks at inodes removed in the last minutes each time that it makes a file (recently_deleted() in
 * fs/ext4/ialloc.c), so that every figure would tell of what ran before.
 */
async function diskOf(directory: string, opening: AsyncDisposableStack): Promise<string> {
  const { stdout } = await run("findmnt", ["--noheadings", "--output", "FSTYPE,SOURCE", "--target", directory]);
  const [type = "", source = ""] = stdout.trim().split(/\s+/);
  if (type !== "ext4" || existsSync(`/proc/fs/jbd2/${basename(source)}-8`)) return type;
  if (process.getuid?.() !== 0) return "ext4 without a journal, which slows down starts";
  await run("mount", ["-t", "tmpfs", "-o", "mode=755", "jobs-bench", directory]);
  opening.defer(async () => void (await run("umount", ["--lazy", directory])));
  return "tmpfs";
}

/** Makes a group for the benchmarks beside the one that a worker would make for its jobs; "" without cgroup v2. */
async function makeGroup(stateDir: string): Promise<string> {
  const worker = await openWorker({ stateDir });
  await worker.close();
  rmSync(stateDir, { recursive: true });
  const path = /^cgroup v2 at (.+), controllers/.exec(worker.host)?.[1];
  if (path === undefined) return "";
  const group = join(dirname(path), `jobs-bench-${process.pid}`);
  mkdirSync(group);
  return group;
}

/** Makes a group below that of the benchmarks, with a group `server` in it. Returns its path; "" without cgroup v2. */
export function groupOf({ group }: Pick<Bench, "group">, name: string): string {
  if (group === "") return "";
  mkdirSync(join(group, name, "server"), { recursive: true });
  return join(group, name);
}

/** Returns the command line that runs `command` in the group `server` of groupOf(), or where it is. */
export function within(group: string, command: readonly string[]): [string, ...string[]] {
  const script = 'group=$1; shift; [ -z "$group" ] || echo $$ >"$group/server/cgroup.procs"; exec "$@"';
  return ["sh", "-c", script, "sh", group, ...command];
}

/** Kills everything in a group, and removes the group once the kernel lets go of it. */
async function removeGroup(group: string): Promise<void> {
  writeFileSync(join(group, "cgroup.kill"), "1");
  // find(1) removes the groups below first. The files in them cannot be removed, and need not be.
  await retried(() => run("find", [group, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+"]));
}

/** Calls `attempt` again until it succeeds, for two seconds. */
async function retried(attempt: () => Promise<unknown>): Promise<void> {
  for (let left = 100; ; left--) {
    try {
      await attempt();
      return;
    } catch (error) {
      if (left === 0) throw error;
      await delay(20);
    }
  }
}

/** Child processes that are killed on disposing, at once when they are adopted after that. */
function openChildren(): Pick<Bench, "adopt"> & Disposable {
  const children = new Set<ChildProcess>();
  let closed = false;
  return {
    adopt(child) {
      if (closed) child.kill("SIGKILL");
      children.add(child);
      child.once("exit", () => children.delete(child));
      return child;
    },
    [Symbol.dispose]() {
      closed = true;
      for (const child of children) child.kill("SIGKILL");
    },
  };
}

async function startDaemon(
  bench: Pick<Bench, "directory" | "group" | "pem" | "adopt"> & {
    readonly program: readonly [string, ...string[]];
  },
  name: string,
  { state = join(bench.directory, name), flags = [], ownGroup, preload }: DaemonOptions,
): Promise<Daemon> {
  const { directory, pem, adopt, program } = bench;
  const own = ownGroup === undefined ? "" : groupOf(bench, ownGroup);
  const [command, ...args] = within(own, [...program, "--listen", "127.0.0.1:0", "--state", state]);
  args.push("--ca", pem("ca.crt"), "--cert", pem("worker.crt"), "--key", pem("worker.key"), ...flags);
  const group = own || bench.group;
  if (group !== "") args.push("--cgroup", group);
  const inUse = join(directory, `${name}.in-use`);
  const env = {
    PATH: process.env["PATH"],
    ...(preload && {
      NODE_OPTIONS: `--import=${new URL("preload.ts", import.meta.url).href}`,
      JOBS_BENCH_HEAP_MB: String(preload.heapMb),
      JOBS_BENCH_IN_USE: inUse,
    }),
  };
  const logFile = join(directory, `${name}.log`);
  const log = openSync(logFile, "w");
  // The daemon has a session of its own, so that Ctrl-C does not end it before its jobs.
  const child = adopt(spawn(command, args, { env, detached: true, stdio: ["ignore", "pipe", log] }));
  closeSync(log);
  const exited = once(child, "exit");
  const server = await address(child, () => `the daemon did not start:\n${readFileSync(logFile, "utf8")}`);
  const credentials = credentialsOf(server, pem, "writer");
  const client = connect(credentials);
  async function close(): Promise<void> {
    const timer = setTimeout(() => child.kill("SIGKILL"), EXIT_TIMEOUT_MS);
    await stopJobs(client).catch(() => {}); // a daemon that has crashed cannot; its jobs' cgroup is killed in the end
    client.close();
    child.kill("SIGTERM");
    await exited;
    clearTimeout(timer);
  }
  let closed: Promise<void> | undefined;
  return {
    pid: child.pid ?? 0,
    state,
    credentials,
    client,
    async collect() {
      child.kill("SIGUSR2");
      // The daemon handles the signal before it answers the second call.
      for (let i = 0; i < 2; i++) await client.list({ limit: 1 });
      return Number(readFileSync(inUse, "utf8"));
    },
    kill: () =>
      (closed ??= (async () => {
        client.close();
        child.kill("SIGKILL");
        await exited;
      })()),
    [Symbol.asyncDispose]: () => (closed ??= close()),
  };
}

/** Resolves to the HOST:PORT of "listening on HOST:PORT", which a server says on stdout. */
export async function address(child: ChildProcess, failure: () => string): Promise<string> {
  if (child.stdout === null) throw new Error("stdout is not a pipe");
  for await (const line of createInterface(child.stdout)) {
    const found = /^listening on (\S+)/.exec(line)?.[1];
    if (found !== undefined) return found;
  }
  throw new Error(failure());
}

export function credentialsOf(server: string, pem: Bench["pem"], role: "reader" | "writer"): Credentials {
  const [ca, cert, key] = ["ca.crt", `${role}.crt`, `${role}.key`].map((name) => readFileSync(pem(name)));
  if (!ca || !cert || !key) throw new Error("no credentials");
  return { server, ca, cert, key };
}

/** Stops all jobs. Resolves when they have ended. */
async function stopJobs(client: Client): Promise<void> {
  const states = [State.STATE_STARTING, State.STATE_RUNNING, State.STATE_STOPPING];
  for (;;) {
    const { jobs } = await client.list({ states, limit: 1000 });
    if (jobs.length === 0) return;
    await Promise.all(jobs.map(({ id }) => client.stop({ jobId: id, grace: { seconds: 0n, nanos: 0 } })));
  }
}
