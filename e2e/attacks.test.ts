import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { ALIVE } from "./testing/attacks.ts";
import { holdsOf } from "./testing/promises.ts";
import { LOOK_MS, NOTHING, type OfEach, openTarget, type Target } from "./testing/target.ts";

// Jobs that try what a job must not be able to do, and what root in the container sees of it.

const DEADLINE = { timeout: 60_000, interval: 500 };

const made = new AsyncDisposableStack();
let target: Target;
beforeAll(async () => {
  target = made.use(await openTarget());
}, LOOK_MS);
afterAll(() => made.disposeAsync());

holdsOf(() => target);

describe("a start", () => {
  const others = ["--user=www-data", "--user=daemon", "--group=shadow", "--group=disk", "--user=root --group=shadow"];
  it.each(others)("with %s is refused", async (others) => {
    const flags = others.split(/[ =]/);
    const { code, stdout, stderr } = await target.runAlone(flags, "head", "-c", "16", "/etc/shadow");
    expect({ code, stdout }).toEqual({ code: 125, stdout: "" });
    expect(stderr).toMatch(/--allow-(user|group)/);
  });
});

describe("a job has", () => {
  it("a uid, /tmp and /dev/shm that no other job has", async () => {
    const script = "id -u; id -g; id -G; ls -A /tmp /var/tmp /dev/shm | grep -v :; touch /tmp/x /var/tmp/x /dev/shm/x";
    const waits = await target.daemon.start("--", "sh", "-c", `${script}; exec sleep 31337`);
    await vi.waitFor(
      async () => expect((await target.daemon.jobs("reader", "stream", waits)).stdout).not.toBe(""),
      DEADLINE,
    );
    const { stdout } = await target.runAlone([], "sh", "-c", script);
    const [uid, gid, groups, ...files] = stdout.trimEnd().split("\n");
    expect({ gid, groups, files: files.filter(Boolean) }).toEqual({ gid: uid, groups: uid, files: [] });
    const first = (await target.daemon.jobs("reader", "stream", waits)).stdout.split("\n")[0];
    expect(Number(first)).toBeGreaterThan(2_000_000_000);
    expect(first).not.toBe(uid);
    await target.daemon.jobs("writer", "stop", "--grace", "0", waits);
  });

  it("no more rights by a set-user-id program", async () => {
    const script = `/programs/touch /tmp/made-as-$(id -u); /programs/cat /proc/self/status | grep ^Cap
      su -c id < /dev/null; setpriv --reuid=1 id; setpriv --reuid=0 --inh-caps=+all id; newgrp root < /dev/null`;
    const { nobody, root } = await target.each((user) => target.run(user, [], "sh", "-c", script));
    expect(await target.outside("stat -c '%u %g' /tmp/made-as-*")).toBe("0 0\n65534 65534\n");
    for (const { stdout } of [nobody, root]) expect(stdout).toMatch(/^(Cap(Inh|Prm|Eff|Bnd|Amb):\t0{16}\n){5}$/);
  });

  it("no network but a loopback, when it is to have none", async () => {
    const script = `for address in 127.0.0.1 $ADDRESS; do (exec 3<> /dev/tcp/$address/$PORT) && echo reached; done`;
    const flags = ["--env", `PORT=${await port()}`];
    const reached = async (...more: string[]): Promise<OfEach<string>> => {
      const { nobody, root } = await target.each((user) => target.run(user, [...flags, ...more], "bash", "-c", script));
      return { nobody: nobody.stdout, root: root.stdout };
    };
    const both = "reached\nreached\n";
    expect(await reached()).toEqual({ nobody: both, root: both });
    expect(await reached("--network", "none")).toEqual(NOTHING);
  });
});

/** Where the daemon listens in the container. */
async function port(): Promise<string> {
  return /\d+$/m.exec(await target.outside("tr '\\0' '\\n' < /proc/$DAEMON/environ | grep ^JOBSD_LISTEN"))?.[0] ?? "";
}

describe("a job with a limit on its memory", () => {
  const LIMIT = ["--memory", "32M"];
  const killed = expect.objectContaining({ code: 137, stderr: expect.stringContaining("out of memory") });

  it("cannot raise it, nor leave its cgroup, nor mount another one", async () => {
    const script = `exec > /dev/null 2>&1
      for group in /sys/fs/cgroup /sys/fs/cgroup/.. /sys/fs/cgroup/jobs-*/*; do
        echo max > $group/memory.max; echo 0 > $group/cgroup.procs; mkdir $group/more
      done
      exec /programs/unshares /programs/eats-memory`;
    expect(await target.each((user) => target.run(user, LIMIT, "sh", "-c", script))).toEqual({
      nobody: killed,
      root: killed,
    });
    expect(await target.seen(ALIVE)).toEqual({ alive: target.before["alive"] });
  });

  it.each(["/dev/shm", "/tmp", "/var/tmp"])("cannot get round it by files in %s", async (directory) => {
    const script = `head -c 128M /dev/zero > ${directory}/file; rm ${directory}/file`;
    const flags = [...LIMIT, "--private-tmp"];
    expect(await target.each((user) => target.run(user, flags, "sh", "-c", script))).toEqual({
      nobody: killed,
      root: killed,
    });
    expect(await target.seen(ALIVE)).toEqual({ alive: target.before["alive"] });
  });
});

describe("a job ends when it is to end,", () => {
  const processes = `for file in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $file; echo; done | grep -c -e '^sleep 4242' -e '^/usr/bin/perl /programs/forks' || :`;

  it("whatever it has forked away, stopped, traced or put into namespaces", async () => {
    const script = `trap "" TERM HUP
      (setsid sh -c 'sleep 4242 & setsid sleep 4242' &)
      sh -c 'kill -STOP $$; :' & sh -c 'sleep 4242 & sleep 1; kill -STOP $!'
      /programs/holds-a-child & unshare --user --pid --mount-proc --fork sleep 4242 &
      sleep 4242`;
    const flags = { nobody: ["--allow-user-namespaces"], root: [] };
    const ids = await target.each((user) =>
      target.daemon.start("--user", user, ...flags[user], "--", "sh", "-c", script),
    );
    await vi.waitFor(async () => expect(Number(await target.outside(processes))).toBeGreaterThanOrEqual(8), DEADLINE);
    expect(await target.daemon.jobs("writer", "stop", "--grace", "500ms", ids.nobody, ids.root)).toMatchObject({
      code: 0,
    });
    expect(await target.outside(processes)).toBe("0\n");
  });

  it("however fast it forks", async () => {
    const ids = await target.each((user) =>
      target.daemon.start("--user", user, "--pids", "40", "--", "/programs/forks-forever"),
    );
    await vi.waitFor(async () => expect(Number(await target.outside(processes))).toBe(80), DEADLINE);
    expect(await target.daemon.jobs("writer", "stop", "--grace", "0", ids.nobody, ids.root)).toMatchObject({ code: 0 });
    const groups = 'grep -l "populated 1" /sys/fs/cgroup/jobs-*/*/cgroup.events | wc -l';
    expect(await target.outside(`${processes}; ${groups}`)).toBe("0\n2\n"); // the neighbours'
  });

  it("and not before, whatever it sends to its init", async () => {
    const script = `for signal in KILL STOP ABRT SEGV CONT; do kill -$signal 1; done; echo 1000 > /proc/1/oom_score_adj
      prlimit --pid 1 --fsize=0 --nofile=0; renice -n 19 -p 1; taskset -p 1 1; chrt --batch -p 0 1; ionice -c 3 -p 1; exit 3`;
    const { nobody, root } = await target.each((user) => target.run(user, [], "sh", "-c", script));
    expect({ nobody: nobody.code, root: root.code }).toEqual({ nobody: 3, root: 3 });
  });
});
