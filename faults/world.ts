import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { createCipheriv, createHash } from "node:crypto";
import { once } from "node:events";
import {
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

/** What all sequences of a run share. */
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
  /** Where jobs write that they have started. */
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

export async function openWorld(
  place: Place,
  name: string,
  { logLimit, logKeep, compress, archive }: Sequence,
): Promise<World> {
  const { sandbox, certs } = place;
  await using opening = new AsyncDisposableStack();
  const home = join(sandbox.directory, name);
  mkdirSync(home);
  const state = join(home, "state");
  mkdirSync(state);
  const store = join(home, "archive");
  mkdirSync(store);
  const flags = ["--log-limit", String(logLimit), "--log-keep", logKeep, "--log-compress", compress ? "zstd" : "off"];
  if (archive) flags.push("--archive", store);
  opening.defer(() => rmSync(home, { recursive: true, force: true, maxRetries: 10 }));
  if (sandbox.mounts) {
    execFileSync("mount", ["-t", "tmpfs", "-o", `size=${DISK_BYTES}`, "faults", state]);
    opening.defer(() => {
      execFileSync("umount", ["--lazy", state]);
    });
  }
  const marks = join(home, "marks");
  writeFileSync(marks, "", { mode: 0o666 });
  execFileSync("chmod", ["666", marks]);
  const logFile = join(home, "log");
  const log = openSync(logFile, "a");
  opening.defer(() => closeSync(log));
  const pem = (file: string): string => join(certs, file);
  const credentials = {
    ca: readFileSync(pem("ca.crt")),
    cert: readFileSync(pem("writer.crt")),
    key: readFileSync(pem("writer.key")),
  };
  const clients: Client[] = [];
  opening.defer(() => clients.forEach((client) => client.close()));
  let daemon: ChildProcess | undefined;
  let server = "127.0.0.1:0";
  const ballast = join(state, "ballast");
  const tail = (): string =>
    readFileSync(logFile, "utf8")
      .trimEnd()
      .split("\n")
      .slice(-8)
      .map((line) => line.slice(0, 400))
      .join("\n");
  async function end(signal: "SIGKILL" | "SIGTERM"): Promise<void> {
    if (daemon === undefined) return;
    const ending = daemon;
    if (ending.exitCode !== null || ending.signalCode !== null)
      throw new Error(`the daemon died by itself:\n${tail()}`);
    daemon = undefined;
    const exited = once(ending, "exit");
    ending.kill(signal);
    const timer = setTimeout(() => ending.kill("SIGKILL"), DEADLINE_MS);
    const [code]: unknown[] = await exited;
    clearTimeout(timer);
    if (signal === "SIGTERM" && code !== 0)
      throw new Error(`the daemon exited with ${String(code)} on SIGTERM:\n${tail()}`);
  }
  opening.defer(() => endAll(sandbox));
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
      return daemon !== undefined;
    },
    async boot() {
      const files = ["--ca", pem("ca.crt"), "--cert", pem("worker.crt"), "--key", pem("worker.key")];
      const args = ["--listen", server, "--state", state, ...files, "--max-jobs", "1000", ...flags];
      if (sandbox.cgroup !== undefined) args.push("--cgroup", sandbox.cgroup);
      const env = { PATH: process.env["PATH"], FAULTS_RUN: sandbox.run };
      daemon = spawn(join(ROOT, "bin/jobsd"), args, { env, stdio: ["ignore", "pipe", log] });
      server = await address(daemon).catch(() => {
        throw new Error(`the daemon did not start:\n${tail()}`);
      });
      clients.push(connect({ server, ...credentials }));
    },
    end,
    async freeze(ms) {
      const frozen = daemon;
      frozen?.kill("SIGSTOP");
      await delay(ms);
      frozen?.kill("SIGCONT");
    },
    directories: () =>
      readdirSync(join(state, "jobs")).flatMap((name) =>
        name === ".spares" ? readdirSync(join(state, "jobs", name)) : [name],
      ),
    groups: () => (sandbox.cgroup === undefined ? [] : groupsIn(sandbox.cgroup)),
    fill() {
      const file = openSync(ballast, "w");
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
    },
    free: () => rmSync(ballast, { force: true }),
    log: tail,
    [Symbol.asyncDispose]: () => disposal.disposeAsync(),
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

/** What has to be built and is not there. */
export function unbuilt(): string[] {
  return ["dist/jobsd.js", "build/supervisor"].filter((file) => !existsSync(join(ROOT, file)));
}
