import { vi, expect } from "vitest";
import { ALIVE, type Attack, ATTACKS, FILTERED, PROGRAMS } from "./attacks.ts";
import type { Ran } from "./cli.ts";
import { type Daemon, startDaemon } from "./daemon.ts";

export type User = "nobody" | "root";
export type OfEach<T> = Readonly<Record<User, T>>;

/** A container, two jobs and a look at them, on an emulated machine that others use, too. */
export const LOOK_MS = 300_000;
const DEADLINE = { timeout: 60_000, interval: 500 };
export const NOTHING = { nobody: "", root: "" };

/**
 * What no job may get of the daemon: its descriptors, its environment. Its number is one that no job has in its own
 * namespace, where an attack on it would be one on the job itself.
 */
const ENTRYPOINT = [
  "bash",
  "-c",
  `exec 9< /etc/jobs/worker.key 50< /etc/shadow 251> /tmp/stray
   for number in $(seq 40); do (:); done
   export WORD=kept-from-jobs LD_PRELOAD=libm.so.6 NODE_OPTIONS=--no-warnings
   exec tini -- node /opt/jobs/dist/jobsd.js "$@"`,
  "bash",
];
const WITHOUT_ROOT = ENTRYPOINT.map((line) =>
  line.replace(
    "exec tini",
    `chown 65534 /etc/jobs/worker.key /var/lib/jobs
   exec setpriv --reuid=65534 --regid=65534 --clear-groups tini`,
  ),
);

/** A daemon with two jobs at which others are aimed, and what root in the container sees of them. */
export interface Target extends AsyncDisposable {
  readonly daemon: Daemon;
  /** Pids, ids and an address, as sh reads them, and as jobs have them in their environment. */
  readonly facts: Readonly<Record<string, string>>;
  /** What root saw before any attack, by the attack's name. */
  readonly before: Readonly<Record<string, string>>;
  /** Does something for both users at once; once as nobody, where the daemon is nobody's. */
  readonly each: <T>(what: (user: User) => Promise<T>) => Promise<OfEach<T>>;
  readonly run: (user: User, flags: readonly string[], ...command: readonly string[]) => Promise<Ran>;
  /** As the job is by default: under a uid of its own where the daemon is root. */
  readonly runAlone: (flags: readonly string[], ...command: readonly string[]) => Promise<Ran>;
  /** What a script in sh prints that root runs in the container. */
  readonly outside: (script: string) => Promise<string>;
  /** What root sees now, by the attack's name. */
  readonly seen: (...of: readonly Omit<Attack, "script">[]) => Promise<Record<string, string>>;
}

async function forBoth<T>(what: (user: User) => Promise<T>): Promise<OfEach<T>> {
  const [nobody, root] = await Promise.all([what("nobody"), what("root")]);
  return { nobody, root };
}

/** @param withoutRoot the daemon is nobody's, and so are all its jobs */
export async function openTarget({ withoutRoot = false } = {}): Promise<Target> {
  const flags = ["--allow-root", "--allow-user", "nobody", "--allow-user-namespaces"];
  const options = withoutRoot ? { entrypoint: WITHOUT_ROOT } : { flags, entrypoint: ENTRYPOINT };
  await using made = new AsyncDisposableStack();
  const daemon = made.use(await startDaemon(options));
  for (const [name, code] of Object.entries(PROGRAMS))
    await daemon.put(`/programs/${name}`, `#!/usr/bin/perl\n${code}\n`, 0o755);
  await daemon.inside("sh", "-c", "cp /usr/bin/touch /usr/bin/cat /programs; chmod 6755 /programs/touch /programs/cat");
  const facts = await factsOf(daemon, await forBoth((user) => settle(daemon, withoutRoot ? "nobody" : user)));

  const runAlone: Target["runAlone"] = (more, ...command) => {
    const env = Object.entries(facts).flatMap(([name, value]) => ["--env", `${name}=${value}`]);
    return daemon.jobs("writer", "run", ...env, ...more, "--", ...command);
  };
  const outside: Target["outside"] = (script) => {
    const assignments = Object.entries(facts).map(([name, value]) => `${name}='${value}'`);
    return daemon.inside("sh", "-c", `${assignments.join("\n")}\nexec 2>&1\n${script}`);
  };
  const seen: Target["seen"] = async (...of) => {
    const all = await outside(of.map(({ sees }) => `( ${sees}\n); printf '\\0'`).join("\n"));
    const parts = all.split("\0");
    return Object.fromEntries(of.map(({ name }, at) => [name, parts[at] ?? ""]));
  };
  const before = await seen(ALIVE, ...ATTACKS, FILTERED);
  const lifetime = made.move();
  return {
    daemon,
    facts,
    before,
    async each(what) {
      if (!withoutRoot) return await forBoth(what);
      const one = await what("nobody");
      return { nobody: one, root: one };
    },
    run: (user, more, ...command) => runAlone(["--user", user, ...more], ...command),
    runAlone,
    outside,
    seen,
    [Symbol.asyncDispose]: () => lifetime.disposeAsync(),
  };
}

/** Starts a job that others are aimed at; resolves to its id. */
async function settle(daemon: Daemon, user: User): Promise<string> {
  const script = "echo its words | tee /dev/shm/words; ipcmk --shmem 64; exec sleep 31337";
  const id = await daemon.start("--user", user, "--", "sh", "-c", script);
  await vi.waitFor(
    async () => expect((await daemon.jobs("reader", "stream", id)).stdout).toMatch(/memory id/),
    DEADLINE,
  );
  return id;
}

/** Pids as the container numbers them. */
async function factsOf(daemon: Daemon, of: OfEach<string>): Promise<Record<string, string>> {
  const pids = await forBoth((user) => daemon.query(of[user]));
  const parents = `parent() { sed -n "s/^PPid:\\t//p" /proc/$1/status; }
    for pid in ${pids.nobody.pid} ${pids.root.pid}; do parent $pid; done
    parent $(parent ${pids.root.pid}); parent $(parent $(parent ${pids.root.pid})); hostname -i`;
  const [first = "", second = "", spawner = "", process = "", address = ""] = (
    await daemon.inside("sh", "-c", parents)
  ).split("\n");
  return {
    DAEMON: process,
    SPAWNER: spawner,
    SUPERVISORS: `${first} ${second}`,
    NEIGHBOURS: `${pids.nobody.pid} ${pids.root.pid}`,
    JOBS: `${of.nobody} ${of.root}`,
    ADDRESS: address.split(" ")[0] ?? "",
  };
}
