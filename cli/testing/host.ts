import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync } from "node:fs";
import { chmod, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { issueAll } from "../../certs/issue.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
/** Half of a program's start is its compilation. */
const CACHE = join(ROOT, "node_modules/.cache/jobs-tests");

/**
 * The built programs. They are built anew where a source has changed since; test files run at once, and one of them builds.
 */
export const [JOBSCTL, JOBSD] = [join(ROOT, "dist/jobsctl.js"), join(ROOT, "dist/jobsd.js")];
const BUNDLE = `[ -e "$0" ] && [ -z "$(find cli src certs proto/generated package.json rolldown.config.ts -newer "$0" -name '*.*s*' ! -name '*.test.ts' -print -quit)" ] ||
  "$1" node_modules/rolldown/bin/cli.mjs --config rolldown.config.ts`;
execFileSync("flock", [ROOT, "sh", "-c", BUNDLE, JOBSCTL, process.execPath], {
  cwd: ROOT,
  stdio: ["ignore", "ignore", "inherit"],
});

/** How a program ended and what it wrote. */
export interface Ran {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A program that runs; `output` grows as it writes. */
export interface Running {
  readonly child: ChildProcess;
  readonly output: { stdout: string; stderr: string };
  readonly ended: Promise<Ran>;
  /** Resolves when stdout (or stderr) has the text so many times; rejects when the program ends without. */
  shows(text: string, where?: "stdout" | "stderr", times?: number): Promise<void>;
}

/** A test that fails leaves its programs to the host's end. */
const launched = new Set<ChildProcess>();

interface LaunchOptions {
  /** Files that it writes to, at their end. */
  readonly stdout?: string | undefined;
  readonly stderr?: string | undefined;
  /** The directory that it is run in; that of the tests when absent. */
  readonly cwd?: string | undefined;
  /** A command line that runs the words behind it. */
  readonly under?: readonly string[];
}

/** Runs one of the programs. */
export function launch(
  program: "jobsctl" | "jobsd",
  args: readonly string[],
  env: NodeJS.ProcessEnv = {},
  { stdout, stderr, cwd, under = [] }: LaunchOptions = {},
): Running {
  const opened = [stdout, stderr].map((path) => (path === undefined ? "pipe" : openSync(path, "a")));
  const words = [...under, process.execPath, "--", program === "jobsctl" ? JOBSCTL : JOBSD, ...args];
  const child = spawn(words[0] ?? "", words.slice(1), {
    env: {
      PATH: process.env["PATH"],
      HOME: "/nonexistent",
      NODE_COMPILE_CACHE: CACHE,
      // This host may have a daemon of its own, and a file for that.
      JOBSD_CONFIG: "/dev/null",
      ...env,
    },
    stdio: ["pipe", ...opened],
    cwd,
  });
  for (const each of opened) if (typeof each === "number") closeSync(each);
  const output = { stdout: "", stderr: "" };
  const changed = new EventTarget();
  for (const name of ["stdout", "stderr"] as const) {
    child[name]?.setEncoding("latin1").on("data", (text: string) => {
      output[name] += text;
      changed.dispatchEvent(new Event("change"));
    });
  }
  launched.add(child);
  const ended = once(child, "close").then(([code]: (number | null)[]) => {
    changed.dispatchEvent(new Event("change"));
    return { code: code ?? null, ...output };
  });
  return {
    child,
    output,
    ended,
    async shows(text, where = "stdout", times = 1) {
      while (output[where].split(text).length <= times) {
        if (child.exitCode !== null || child.signalCode !== null)
          throw new Error(`ended without: ${JSON.stringify(output)}`);
        await once(changed, "change");
      }
    },
  };
}

/** A daemon with certificates of its own in a temporary directory. */
export interface Host extends AsyncDisposable {
  readonly dir: string;
  /** The daemon's process. */
  readonly pid: number;
  readonly server: string;
  /** A file of its certificates: "ca.crt", "writer.key". */
  file(name: string): string;
  /** The environment of another daemon, as far as it names certificates. */
  readonly certificates: NodeJS.ProcessEnv;
  /** The environment of a client with a role. */
  as(role: "reader" | "writer"): NodeJS.ProcessEnv;
  /** Runs `jobsctl` as the writer. */
  jobs(args: readonly string[], env?: NodeJS.ProcessEnv): Promise<Ran>;
  launch(args: readonly string[], env?: NodeJS.ProcessEnv): Running;
  /** Starts a job and returns its id. */
  start(...command: readonly string[]): Promise<string>;
  /** Ends the daemon; the result starts another one on the same address and state. */
  end(signal: "SIGKILL" | "SIGTERM"): Promise<() => Promise<void>>;
  /** Kills the daemon as a crash would, and starts another one; `meanwhile` comes between. */
  crash(meanwhile?: () => unknown): Promise<void>;
}

type Jobs = Host["jobs"];

/** Ends a daemon and its jobs. Throws Error when it had died. */
async function endHost(dir: string, { child, ended, output }: Running, jobs: Jobs): Promise<void> {
  const died = child.exitCode !== null;
  if (!died) {
    const { stdout } = await jobs(["list", "-q", "--state", "starting,running,stopping", "--limit", "0"]);
    const left = stdout.split("\n").filter(Boolean);
    if (left.length > 0) await jobs(["stop", "--grace", "0", ...left]);
    child.kill("SIGTERM");
    await ended;
  }
  for (const each of launched) each.kill("SIGKILL");
  await rm(dir, { recursive: true, force: true });
  if (died) throw new Error(`the daemon died:\n${output.stderr}`);
}

/**
 * Resolves once the daemon is ready: one with `env`, launched with these options, and certificates that are valid from
 * `now` on. Disposing stops its jobs, ends it and removes all that it made.
 */
export async function startHost(
  flags: readonly string[] = [],
  { env = {}, now, ...options }: { readonly env?: NodeJS.ProcessEnv; readonly now?: Date } & LaunchOptions = {},
): Promise<Host> {
  const dir = await mkdtemp(join(tmpdir(), "jobs-cli-"));
  // Jobs see the files that a test puts there: as nobody they have the host's /tmp.
  await chmod(dir, 0o755);
  const chosen = flags.some((flag) => /^--(user|job-uids)\b/.test(flag)) || process.getuid?.() !== 0;
  const who = chosen ? [] : ["--user", "nobody"];
  await issueAll({ out: join(dir, "certs"), bits: 2048, now });
  const file = (name: string): string => join(dir, "certs", name);
  const tls = ["--ca", file("ca.crt"), "--cert", file("worker.crt"), "--key", file("worker.key")];
  const words = ["--state", join(dir, "state"), ...tls, ...who, ...flags];
  const boot = async (listen: string): Promise<Running> => {
    const booted = launch("jobsd", ["--listen", listen, ...words], env, options);
    await booted.shows("\n");
    return booted;
  };
  let daemon = await boot("127.0.0.1:0");
  const server = daemon.output.stdout.trim().replace("listening on ", "");
  const as: Host["as"] = (role) => ({
    JOBS_SERVER: server,
    JOBS_CA: file("ca.crt"),
    JOBS_CERT: file(`${role}.crt`),
    JOBS_KEY: file(`${role}.key`),
  });
  const end: Host["end"] = async (signal) => {
    daemon.child.kill(signal);
    await daemon.ended;
    return async () => {
      daemon = await boot(server);
    };
  };
  const launchAsWriter: Host["launch"] = (args, own = {}) => launch("jobsctl", args, { ...as("writer"), ...own });
  const jobs: Jobs = (args, own) => launchAsWriter(args, own).ended;
  return {
    dir,
    get pid() {
      return daemon.child.pid ?? 0;
    },
    server,
    file,
    certificates: { JOBSD_CA: file("ca.crt"), JOBSD_CERT: file("worker.crt"), JOBSD_KEY: file("worker.key") },
    as,
    jobs,
    launch: launchAsWriter,
    async start(...command) {
      const { stdout, stderr } = await jobs(["start", "--", ...command]);
      if (stdout === "") throw new Error(stderr);
      return stdout.trim();
    },
    end,
    async crash(meanwhile) {
      const again = await end("SIGKILL");
      await meanwhile?.();
      await again();
    },
    [Symbol.asyncDispose]: () => endHost(dir, daemon, jobs),
  };
}
