import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { getPriority } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { soon } from "../testing/processes.ts";
import { needsRoot, unless } from "../testing/root.ts";
import { BINARIES, hardened, rig } from "./testing/rig.ts";

/** Nice values of a process and of its session (sched(7)). */
function weightOf(pid: number): { readonly own: number; readonly session: string | undefined } {
  const session = `/proc/${pid}/autogroup`;
  return {
    own: getPriority(pid),
    session: existsSync(session)
      ? readFileSync(session, "utf8")
          .trim()
          .replace(/.* nice /, "")
      : undefined,
  };
}

/** Starts a daemon with a job that waits, by way of a shell; resolves to both pids. */
async function daemonOf(how: string, detached: boolean): Promise<AsyncDisposable & { daemon: number; job: number }> {
  const [variant] = hardened;
  if (!variant) throw new Error("no supervisor is built");
  await using made = new AsyncDisposableStack();
  const it = made.use(await rig(variant));
  const launch = it.launchOf({ script: 'read x < "$CUE"' });
  const args = [join(import.meta.dirname, "programs/daemon.ts"), BINARIES.hardened, ...it.daemon(launch)];
  const daemon = spawn("sh", ["-c", `exec ${how} "$@"`, "sh", process.execPath, ...args], {
    detached,
    stdio: ["ignore", "pipe", "inherit"],
  });
  made.defer(async () => {
    it.cue();
    await soon(once(daemon, "exit"), "the daemon ends with its job");
  });
  const [line]: unknown[] = await soon(once(daemon.stdout, "data"), "the daemon has started the job");
  const kept = made.move();
  return { daemon: daemon.pid ?? 0, job: Number(line), [Symbol.asyncDispose]: () => kept.disposeAsync() };
}

const hasSessions = existsSync("/proc/self/autogroup");

describe("a daemon of root has more weight than what its jobs are given", needsRoot, () => {
  test("among the processes of its cgroup", async () => {
    await using it = await daemonOf("env", true);
    expect({ daemon: weightOf(it.daemon).own, job: weightOf(it.job).own }).toEqual({ daemon: -10, job: 0 });
  });

  const needsSessions = unless(hasSessions ? undefined : "the kernel gives sessions no share (CONFIG_SCHED_AUTOGROUP)");
  test("as a session, where the daemon leads one", needsSessions, async () => {
    await using leads = await daemonOf("env", true);
    expect([weightOf(leads.daemon).session, weightOf(leads.job).session]).toEqual(["-10", "0"]);
    const own = weightOf(process.pid).session;
    await using follows = await daemonOf("env", false);
    expect(weightOf(follows.daemon).session).toBe(own);
  });

  test("unless somebody has chosen another one", async () => {
    await using it = await daemonOf("nice -n 5", true);
    expect(weightOf(it.daemon).own).toBe(5);
  });
});
