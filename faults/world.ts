import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { createCipheriv, createHash } from "node:crypto";
import { once } from "node:events";
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { issueAll } from "../certs/issue.ts";
import { type Client, connect } from "../src/client/index.ts";
import type { Sequence } from "./operations.ts";
import { endAll, groupsIn, type Sandbox } from "./sandbox.ts";
import { POOL_BYTES } from "./shape.ts";

const ROOT = join(import.meta.dirname, "..");
const DISK_BYTES = 128 * 1024 * 1024;
const DEADLINE_MS = 30_000;

/** The directory, certificates, program and random bytes that all sequences of a run share. */
export interface Place {
  readonly sandbox: Sandbox;
  readonly certs: string;
  /** The built job.c. */
  readonly program: string;
  /** A file, and what is in it. */
  readonly pool: { readonly path: string; readonly bytes: Buffer };
}

/** Makes certificates, program and pool. */
export async function openPlace(sandbox: Sandbox): Promise<Place> {
  const { directory } = sandbox;
  const certs = join(directory, "certs");
  await issueAll({ out: certs, bits: 2048 });
  const program = join(directory, "job");
  execFileSync("cc", ["-O2", "-o", program, join(import.meta.dirname, "job.c")]);
  const path = join(directory, "pool");
  const key = createHash("sha256").update("pool").digest();
  const bytes = createCipheriv("aes-256-ctr", key, Buffer.alloc(16)).update(Buffer.alloc(POOL_BYTES));
  writeFileSync(path, bytes);
  return { sandbox, certs, program, pool: { path, bytes } };
}

/** A daemon on a state directory of its own. */
export interface World extends AsyncDisposable {
  readonly place: Place;
  /** The file in which each job writes its key when it starts. */
  readonly marks: string;
  /** A client of the daemon that was booted last; earlier ones stay open for those who follow with them. */
  readonly client: Client;
  readonly up: boolean;
  boot(): Promise<void>;
  /** Ends the daemon, and resolves when it is gone. Throws Error when it did not end as it should. */
  end(signal: "SIGKILL" | "SIGTERM"): Promise<void>;
  /** Stops the daemon where it is; resolves when it goes on. */
  freeze(ms: number): Promise<void>;
  /** Jobs' directories, and those of spares that have not been put away. */
  directories(): string[];
  /** Jobs' cgroups, and those made for jobs to come. */
  groups(): string[];
  /** Writes the disk full, to the last byte; `free` gives it back. */
  fill(): void;
  free(): void;
  /** The daemon's last words. */
  log(): string;
}

export async function openWorld(place: Place, name: string, sequence: Sequence): Promise<World> {
  const { sandbox } = place;
  await using opening = new AsyncDisposableStack();
  const home = join(sandbox.directory, name);
  const [state, store, marks] = [join(home, "state"), join(home, "archive"), join(home, "marks")];
  for (const path of [home, state, store]) mkdirSync(path);
  opening.defer(() => rmSync(home, { recursive: true, force: true, maxRetries: 10 }));
  if (sandbox.mounts) {
    execFileSync("mount", ["-t", "tmpfs", "-o", `size=${DISK_BYTES}`, "faults", state]);
    opening.defer(() => {
      execFileSync("umount", ["--lazy", state]);
    });
  }
  writeFileSync(marks, "");
  chmodSync(marks, 0o666);
  const daemon = opening.use(daemonOf(place, home, flagsOf(sequence, state, store, sandbox.cgroup)));
  const clients: Client[] = [];
  opening.defer(() => clients.forEach((client) => client.close()));
  opening.defer(() => endAll(sandbox));
  const ballast = join(state, "ballast");
  const disposal = opening.move();
  return {
    place,
    marks,
    get client() {
      const newest = clients.at(-1);
      if (newest === undefined) throw new Error("no daemon has been booted");
      return newest;
    },
    get up() {
      return daemon.up;
    },
    async boot() {
      clients.push(connect({ server: await daemon.boot(), ...writerOf(place) }));
    },
    end: daemon.end,
    freeze: daemon.freeze,
    directories: () =>
      readdirSync(join(state, "jobs")).flatMap((each) =>
        each === ".spares" ? readdirSync(join(state, "jobs", each)) : [each],
      ),
    groups: () => (sandbox.cgroup === undefined ? [] : groupsIn(sandbox.cgroup)),
    fill: () => fill(ballast),
    free: () => rmSync(ballast, { force: true }),
    log: daemon.log,
    [Symbol.asyncDispose]: () => disposal.disposeAsync(),
  };
}

function flagsOf(
  { logLimit, logKeep, compress, archive }: Sequence,
  state: string,
  store: string,
  cgroup: string | undefined,
): string[] {
  const flags = ["--state", state, "--max-jobs", "1000", "--log-limit", String(logLimit), "--log-keep", logKeep];
  flags.push("--log-compress", compress ? "zstd" : "off");
  if (archive) flags.push("--archive", store);
  if (cgroup !== undefined) flags.push("--cgroup", cgroup);
  return flags;
}

function writerOf({ certs }: Place) {
  const [ca, cert, key] = ["ca.crt", "writer.crt", "writer.key"].map((file) => readFileSync(join(certs, file)));
  if (!ca || !cert || !key) throw new Error("no certificates");
  return { ca, cert, key };
}

/** Writes a file until there is no room for one more byte. */
function fill(path: string): void {
  const file = openSync(path, "w");
  try {
    for (let piece = 1 << 20; piece >= 1;) {
      try {
        writeSync(file, Buffer.alloc(piece));
      } catch {
        piece >>= 4;
      }
    }
  } finally {
    closeSync(file);
  }
}

interface Daemon extends Pick<World, "up" | "end" | "freeze" | "log">, Disposable {
  /** Resolves to the address that it listens on, the same each time. */
  boot(): Promise<string>;
}

/** A daemon whose log is in `home`. Disposal ends no process. */
function daemonOf({ certs, sandbox }: Place, home: string, flags: readonly string[]): Daemon {
  const path = join(home, "log");
  const log = openSync(path, "a");
  let daemon: ChildProcess | undefined;
  let server = "127.0.0.1:0";
  const lastWords = (): string => {
    const lines = readFileSync(path, "utf8").trimEnd().split("\n").slice(-8);
    return lines.map((line) => line.slice(0, 400)).join("\n");
  };
  return {
    get up() {
      return daemon !== undefined;
    },
    async boot() {
      const pem = (file: string): string => join(certs, file);
      const files = ["--ca", pem("ca.crt"), "--cert", pem("worker.crt"), "--key", pem("worker.key")];
      const env = { PATH: process.env["PATH"], FAULTS_RUN: sandbox.run, JOBSD_CONFIG: "/dev/null" };
      const words = ["--listen", server, ...files, ...flags];
      daemon = spawn(join(ROOT, "bin/jobsd"), words, { env, stdio: ["ignore", "pipe", log] });
      server = await address(daemon).catch(() => {
        throw new Error(`the daemon did not start:\n${lastWords()}`);
      });
      return server;
    },
    async end(signal) {
      if (daemon === undefined) return;
      const ending = daemon;
      if (ending.exitCode !== null || ending.signalCode !== null)
        throw new Error(`the daemon died by itself:\n${lastWords()}`);
      daemon = undefined;
      const exited = once(ending, "exit");
      ending.kill(signal);
      const timer = setTimeout(() => ending.kill("SIGKILL"), DEADLINE_MS);
      const [code]: unknown[] = await exited;
      clearTimeout(timer);
      if (signal === "SIGTERM" && code !== 0)
        throw new Error(`the daemon exited with ${String(code)} on SIGTERM:\n${lastWords()}`);
    },
    async freeze(ms) {
      const frozen = daemon;
      frozen?.kill("SIGSTOP");
      await delay(ms);
      frozen?.kill("SIGCONT");
    },
    log: lastWords,
    [Symbol.dispose]: () => closeSync(log),
  };
}

/** Resolves to the HOST:PORT of "listening on HOST:PORT". */
async function address(daemon: ChildProcess): Promise<string> {
  let text = "";
  const found = Promise.withResolvers<string>();
  daemon.stdout?.setEncoding("utf8").on("data", (more: string) => {
    text += more;
    const server = /^listening on (\S+)\n/.exec(text)?.[1];
    if (server !== undefined) found.resolve(server);
  });
  daemon.once("exit", () => found.reject(new Error(text)));
  daemon.once("error", found.reject);
  return found.promise;
}

/** How often each key has been marked. */
export function marksOf({ marks }: World): Map<string, number> {
  const found = new Map<string, number>();
  for (const key of readFileSync(marks, "utf8").split("\n").filter(Boolean)) found.set(key, (found.get(key) ?? 0) + 1);
  return found;
}

/** Resolves once `condition` has nothing to complain of; throws Error with its last complaint after 30 s. */
export async function until(condition: () => string | undefined): Promise<void> {
  let complaint: string | undefined;
  for (const end = performance.now() + DEADLINE_MS; performance.now() < end; await delay(10)) {
    complaint = condition();
    if (complaint === undefined) return;
  }
  throw new Error(complaint);
}

/** The built files that are missing. */
export function unbuilt(): string[] {
  return ["dist/jobsd.js", "build/supervisor"].filter((file) => !existsSync(join(ROOT, file)));
}
