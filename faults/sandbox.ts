import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

/** Where a run happens. In the end its processes are killed, and all below `directory` and `cgroup` is removed. */
export interface Sandbox {
  /** The value of FAULTS_RUN in the environment of every process of the run. */
  readonly run: string;
  /** A directory that jobs can enter as well. */
  readonly directory: string;
  /** Undefined where the host has no cgroup v2 to make groups in. */
  readonly cgroup: string | undefined;
  /** Whether file systems can be mounted, so that the disk can be filled. */
  readonly mounts: boolean;
}

const ENVIRONMENT = "FAULTS_SANDBOX";

/** The sandbox that this process was started in, if it was. */
export function ownSandbox(): Sandbox | undefined {
  const text = process.env[ENVIRONMENT];
  if (text === undefined) return undefined;
  // The parent process cleans up; when it is gone, this process ends.
  process.stdin
    .on("end", () => process.exit(1))
    .on("error", () => process.exit(1))
    .resume();
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- what inSandbox() wrote
  return JSON.parse(text) as Sandbox;
}

/**
 * Runs a program of Node in a sandbox, and leaves nothing of it, also when that fails or is interrupted: as root in
 * pid and mount namespaces of its own, which the kernel ends with it. Resolves to the exit code.
 */
export async function inSandbox(program: string): Promise<number> {
  const run = `faults-${process.pid}-${Date.now().toString(36)}`;
  const mounts = canUnshare();
  // Jobs of root's daemon have a /tmp of their own, so the directory has to be elsewhere.
  const directory = mkdtempSync(
    join(process.getuid?.() === 0 ? (process.env["TMPDIR"] ?? "/var/lib") : tmpdir(), "jobs-faults-"),
  );
  chmodSync(directory, 0o755);
  const cgroup = makeGroup(run);
  const sandbox: Sandbox = { run, directory, cgroup, mounts };
  const env = { ...process.env, FAULTS_RUN: run, [ENVIRONMENT]: JSON.stringify(sandbox) };
  // The first process of a pid namespace has to reap what is orphaned; a shell that waits does.
  const reaping = [
    ...UNSHARE,
    "sh",
    "-c",
    `exec 3<&0; "$@" <&3 3<&- & exec 3<&-; wait $!`,
    "sh",
    process.execPath,
    program,
  ];
  const [file = "", ...words] = mounts ? reaping : [process.execPath, program];
  const child = spawn(file, words, { env, stdio: ["pipe", "inherit", "inherit"], detached: true });
  let interrupted = false;
  const interrupt = (): void => {
    interrupted = true;
    child.kill("SIGKILL");
  };
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, interrupt);
  try {
    const [code]: unknown[] = await once(child, "exit");
    return interrupted ? 130 : typeof code === "number" ? code : 1;
  } finally {
    await leaveNothing(sandbox);
  }
}

const UNSHARE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];

function canUnshare(): boolean {
  if (process.getuid?.() !== 0) return false;
  try {
    const [file = "", ...words] = UNSHARE;
    execFileSync(file, [...words, "true"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}

async function leaveNothing(sandbox: Sandbox): Promise<void> {
  await endAll(sandbox);
  if (sandbox.cgroup !== undefined) await removeGroup(sandbox.cgroup);
  rmSync(sandbox.directory, { recursive: true, force: true, maxRetries: 10 });
}

/** Ends all that runs in a sandbox but the suite itself, and removes the cgroups that it has made. */
export async function endAll(sandbox: Sandbox): Promise<void> {
  const { cgroup } = sandbox;
  for (let left = processesOf(sandbox); left.size > 0; left = processesOf(sandbox)) {
    for (const pid of left.keys()) {
      try {
        process.kill(pid, "SIGKILL");
      } catch {
        // The process has ended.
      }
    }
    await delay(10);
  }
  for (const group of cgroup === undefined ? [] : groupsIn(cgroup).toReversed()) await removeGroup(group);
}

async function removeGroup(path: string): Promise<void> {
  for (let tries = 0; existsSync(path) && tries < 500; tries++) {
    try {
      for (const group of [...groupsIn(path).toReversed(), path]) rmdirSync(group);
    } catch {
      await delay(10); // its processes are ending
    }
  }
}

/**
 * Every process that was begun with FAULTS_RUN=run, but for the suite itself, with its environment; also spawners, spares
 * and supervisors, which have none, but are called with a directory of the sandbox. Zombies have neither.
 */
export function processesOf({ run, directory }: Pick<Sandbox, "run" | "directory">): Map<number, string> {
  const found = new Map<number, string>();
  for (const pid of readdirSync("/proc").map(Number)) {
    if (!(pid > 0)) continue;
    try {
      const environment = readFileSync(`/proc/${pid}/environ`, "latin1");
      const [, first] = readFileSync(`/proc/${pid}/cmdline`, "latin1").split("\0");
      if (environment.includes(`${ENVIRONMENT}=`)) continue;
      if (environment.includes(`FAULTS_RUN=${run}\0`) || first?.startsWith(`${directory}/`))
        found.set(pid, environment);
    } catch {
      // The process has ended, or is another user's.
    }
  }
  return found;
}

/** Makes a group in this process's own group. Returns undefined where none can be made. */
function makeGroup(name: string): string | undefined {
  try {
    const own = /^0::(\/.*)$/m.exec(readFileSync("/proc/self/cgroup", "utf8"))?.[1];
    const mount = readFileSync("/proc/self/mountinfo", "utf8")
      .split("\n")
      .map((line) => line.split(" "))
      .find((fields) => fields[fields.indexOf("-") + 1] === "cgroup2" && fields[3] === "/");
    if (own === undefined || mount === undefined) return undefined;
    const path = join(mount[4] ?? "", own, name);
    mkdirSync(path);
    return path;
  } catch {
    return undefined;
  }
}

/** The groups below one, with their paths. */
export function groupsIn(path: string): string[] {
  if (!existsSync(path)) return [];
  const groups = readdirSync(path, { withFileTypes: true }).filter((each) => each.isDirectory());
  return groups.flatMap(({ name }) => [join(path, name)].concat(groupsIn(join(path, name))));
}
