import { execFile, spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { closeSync, existsSync, globSync, mkdtempSync, openSync, chmodSync, readFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";
import { issueAll } from "../certs/issue.ts";
import { State } from "../proto/generated/jobs/v1/worker.ts";
import { connect, type Client, type Credentials } from "../src/client/index.ts";
import { killGroup, openHierarchy, removeGroup } from "../src/worker/cgroup.ts";

const ROOT = join(import.meta.dirname, "..");
const EXIT_TIMEOUT_MS = 15_000;
const run = promisify(execFile);

/** A daemon in a process of its own. Disposing ends its jobs and it; its state stays until all is measured. */
export interface Daemon extends AsyncDisposable {
  readonly pid: number;
  /** Its state directory. */
  readonly state: string;
  /** What a writer connects with. */
  readonly credentials: Credentials;
  /** A writer's. */
  readonly client: Client;
  /** Collects the daemon's garbage; resolves to the bytes that are left in use, in its heap and beside. Needs `preload`. */
  collect(): Promise<number>;
  /** SIGKILL; its jobs go on. */
  kill(): Promise<void>;
}

export interface DaemonOptions {
  /** The state directory of an earlier daemon, which has ended; one of its own when absent. */
  readonly state?: string;
  /** More flags of jobsd. */
  readonly flags?: readonly string[];
  /** Loads preload.ts into the daemon, which then holds so many megabytes of live heap more. */
  readonly preload?: { readonly heapMb: number };
}

/** What the benchmarks share. Disposing ends every process and removes every file and cgroup. */
export interface Bench extends AsyncDisposable {
  /** Open to jobs, too. */
  readonly directory: string;
  /** The cgroup that everything runs below; "" where the host has no cgroup v2. */
  readonly group: string;
  /** What this host is, in a line. */
  readonly host: string;
  /** PEM file of the certificates: "ca.crt", "worker.key". */
  readonly pem: (name: string) => string;
  startDaemon(options?: DaemonOptions): Promise<Daemon>;
  /** Compiles bench/NAME.c; resolves to the program's path. */
  compile(name: string): Promise<string>;
  /** A process that ends with the benchmarks at the latest. */
  adopt<Child extends ChildProcess>(child: Child): Child;
}

/** The Node that bin/jobs and bin/jobsd run on. */
export function node(): string {
  const [path] = globSync(join(ROOT, "node_modules/node-linux-*/bin/node"));
  if (path === undefined) throw new Error("Node 26 is not installed here: run npm ci");
  return path;
}

/** Path of a file of the checkout. */
export function checkout(path: string): string {
  return join(ROOT, path);
}

/** What has to be built, and is not there. */
export function unbuilt(): string[] {
  return ["dist/jobs.js", "dist/jobsd.js", "build/supervisor"].filter((path) => !existsSync(checkout(path)));
}

/**
 * Makes a directory, certificates as in production, and a cgroup where the host has them.
 *
 * @param fromSource for tests: daemons are what the source is, not what was built of it, and keys are made fast
 */
export async function openBench({ fromSource = false } = {}): Promise<Bench> {
  await using opening = new AsyncDisposableStack();
  // Jobs of a daemon that is root have a /tmp of their own, and are to see this.
  const directory = mkdtempSync(
    join(process.getuid?.() === 0 ? (process.env["TMPDIR"] ?? "/var/lib") : tmpdir(), "jobs-bench-"),
  );
  opening.defer(() => rm(directory, { recursive: true, force: true, maxRetries: 10 }));
  chmodSync(directory, 0o755);
  // ext4 takes up to a millisecond to make a file near many that were removed some minutes ago, as by tests. It puts
  // each directory made in one with this attribute elsewhere, by its name. Other file systems refuse the attribute.
  await run("chattr", ["+T", directory]).catch(() => {});
  const hierarchy = openHierarchy(`jobs-bench-${process.pid}`);
  const group = hierarchy.kind === "cgroup2" ? hierarchy.path : "";
  if (group !== "")
    opening.defer(async () => {
      killGroup(group);
      await removeGroup(group);
    });
  const certs = join(directory, "certs");
  await issueAll({ out: certs, ...(fromSource && { bits: 2048 }) });
  const pem = (name: string): string => join(certs, name);

  const children = new Set<ChildProcess>();
  const daemons = new Set<Daemon>();
  let closed = false;
  opening.defer(async () => {
    closed = true;
    await Promise.allSettled([...daemons].map((daemon) => daemon[Symbol.asyncDispose]()));
    for (const child of children) child.kill("SIGKILL");
  });
  function adopt<Child extends ChildProcess>(child: Child): Child {
    if (closed) child.kill("SIGKILL");
    children.add(child);
    child.once("exit", () => children.delete(child));
    return child;
  }
  let count = 0;
  const disposal = opening.move();
  return {
    directory,
    group,
    host: `cgroup v2: ${group === "" ? "none" : group}; state in ${directory}`,
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
      // As the supervisor is: a static program forks and starts faster.
      await run("cc", ["-static", ...args]).catch(() => run("cc", args));
      return program;
    },
    [Symbol.asyncDispose]: () => disposal.disposeAsync(),
  };
}

async function startDaemon(
  bench: Pick<Bench, "directory" | "group" | "pem" | "adopt"> & {
    readonly program: readonly [string, ...string[]];
  },
  name: string,
  { state = join(bench.directory, name), flags = [], preload }: DaemonOptions,
): Promise<Daemon> {
  const { directory, group, pem, adopt, program } = bench;
  const [command, ...args] = [...program, "--listen", "127.0.0.1:0", "--state", state, "--ca", pem("ca.crt")];
  args.push("--cert", pem("worker.crt"), "--key", pem("worker.key"), ...flags);
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
  // In a session of its own, so that Ctrl-C does not end it before its jobs.
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
      // The signal is taken in the turn that answers the first call, at the latest.
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

/** Resolves to the HOST:PORT of "listening on HOST:PORT", the first line of a server's stdout. */
export async function address(child: ChildProcess, failure: () => string): Promise<string> {
  if (child.stdout === null) throw new Error("stdout is no pipe");
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

/** Ends all that run, and resolves when they have ended. */
async function stopJobs(client: Client): Promise<void> {
  const states = [State.STATE_STARTING, State.STATE_RUNNING, State.STATE_STOPPING];
  for (;;) {
    const { jobs } = await client.list({ states, limit: 1000 });
    if (jobs.length === 0) return;
    await Promise.all(jobs.map(({ id }) => client.stop({ jobId: id, grace: { seconds: 0n, nanos: 0 } })));
  }
}
