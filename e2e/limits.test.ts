import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { seconds, type Usage } from "./testing/api.ts";
import { type Daemon, startDaemon } from "./testing/daemon.ts";

const MIB = 1024 * 1024;
const PROGRAMS = {
  // Four times the limit that it is given, and no more: without a limit it ends well.
  "eats-memory": `$held = "x" x ${128 * MIB};`,
  "forks-forever": "while (1) { defined fork or sleep 1 }",
};

const made = new AsyncDisposableStack();
let daemon: Daemon;
beforeAll(async () => {
  daemon = made.use(await startDaemon());
  for (const [name, code] of Object.entries(PROGRAMS)) {
    await daemon.put(`/programs/${name}`, `#!/usr/bin/perl\n${code}\n`, 0o755);
  }
});
afterAll(() => made.disposeAsync());

/** A file of a running job's cgroup. */
function cgroupFile(id: string, file: string): Promise<string> {
  return daemon.inside("sh", "-c", `cat /sys/fs/cgroup/jobs-*/${id}/${file}`);
}

function kill(...ids: readonly string[]): Promise<unknown> {
  return daemon.jobs("writer", "stop", "--grace", "0", ...ids);
}

function cpuSeconds({ cpuUser, cpuSystem }: Usage): number {
  return seconds(cpuUser) + seconds(cpuSystem);
}

/** The share of one CPU that a job gets over some twenty seconds of the worker's clock. */
async function cpuShare(id: string): Promise<number> {
  const before = (await daemon.query(id)).job.usage;
  const elapsed = async (): Promise<number> =>
    seconds((await daemon.query(id)).job.usage.elapsed) - seconds(before.elapsed);
  await vi.waitFor(async () => expect(await elapsed()).toBeGreaterThan(20), { timeout: 60_000, interval: 2_000 });
  const after = (await daemon.query(id)).job.usage;
  return (cpuSeconds(after) - cpuSeconds(before)) / (seconds(after.elapsed) - seconds(before.elapsed));
}

describe("a job with a fifth of a CPU", () => {
  it("gets a fifth, while another one without a limit gets more", async () => {
    const limited = await daemon.start("--cpus", "0.2", "--", "sh", "-c", "while :; do :; done");
    const free = await daemon.start("--", "sh", "-c", "while :; do :; done");
    const [share, freeShare] = await Promise.all([cpuShare(limited), cpuShare(free)]);
    const { job } = await daemon.query(limited);
    await kill(limited, free);
    expect(share).toBeGreaterThan(0.17);
    expect(share).toBeLessThan(0.23);
    expect(freeShare).toBeGreaterThan(0.4);
    expect(job.limits).toMatchObject({ "cpu.max": "20000 100000" });
    expect(seconds(job.usage.cpuThrottled ?? { seconds: "0", nanos: 0 })).toBeGreaterThan(10);
  });

  it("gets a fifth together with all its children", async () => {
    const script = "for child in 1 2 3; do setsid sh -c 'while :; do :; done' & done; wait";
    const id = await daemon.start("--cpus", "0.2", "--", "sh", "-c", script);
    const share = await cpuShare(id);
    await kill(id);
    expect(share).toBeGreaterThan(0.17);
    expect(share).toBeLessThan(0.23);
  });
});

describe("a job that needs more memory than its limit", () => {
  it("is killed and told as out of memory, and its neighbour goes on", async () => {
    const neighbour = await daemon.start("--memory", "32M", "--", "sleep", "1000");
    const ran = await daemon.jobs(
      "writer",
      "run",
      "--memory",
      "32M",
      "--label",
      "test=oom",
      "--",
      "/programs/eats-memory",
    );
    expect(ran).toMatchObject({
      code: 137,
      stderr: expect.stringMatching(/out of memory: the kernel killed [12] process/),
    });
    const [id = ""] = (await daemon.jobs("reader", "list", "-q", "--label", "test=oom")).stdout.split("\n");
    const { exitCode, job } = await daemon.query(id);
    expect(exitCode).toBe(-1);
    // With memory.oom.group the kernel may count the one that it chose twice.
    expect(job.ended).toMatchObject({ outOfMemory: { kills: expect.stringMatching(/^[12]$/) }, signal: 9 });
    expect(job.limits).toMatchObject({ "memory.max": String(32 * MIB) });
    expect(Number(job.usage.memoryPeak)).toBeLessThanOrEqual(32 * MIB);
    expect((await daemon.query(neighbour)).job).toMatchObject({ state: "STATE_RUNNING", pid: expect.any(Number) });
    await kill(neighbour);
  });

  it("ends as a whole when it is a grandchild that needs it", async () => {
    const script = "setsid sh -c 'sleep 1000 & /programs/eats-memory; echo survived'; echo survived";
    const ran = await daemon.jobs("writer", "run", "--memory", "32M", "--", "sh", "-c", script);
    expect(ran).toMatchObject({ code: 137, stdout: "", stderr: expect.stringContaining("out of memory") });
  });
});

describe("a job with a limit on its processes", () => {
  it("is a fork bomb in vain: it stops at the limit, and the daemon and its other jobs go on", async () => {
    const id = await daemon.start("--pids", "20", "--", "/programs/forks-forever");
    await vi.waitFor(async () => expect((await daemon.query(id)).job.usage.processes).toBe("20"), {
      timeout: 60_000,
      interval: 1_000,
    });
    const askedAt = performance.now();
    expect(await daemon.jobs("writer", "run", "--", "echo", "fine")).toEqual({ code: 0, stdout: "fine\n", stderr: "" });
    expect(performance.now() - askedAt).toBeLessThan(15_000);
    expect(await cgroupFile(id, "pids.events")).toMatch(/^max [1-9]/);
    const stopped = await daemon.jobs("writer", "stop", "--grace", "0", id);
    expect(stopped).toMatchObject({ code: 0, stderr: expect.stringContaining("20 processes had to be killed") });
    expect((await daemon.query(id)).job).toMatchObject({ state: "STATE_ENDED", usage: { processesPeak: "20" } });
  });

  it("cannot even fork once when it is one process at most", async () => {
    const ran = await daemon.jobs("writer", "run", "--pids", "1", "--", "sh", "-c", "/bin/echo forked; echo after");
    expect(ran).toMatchObject({ code: 2, stdout: "", stderr: expect.stringContaining("Cannot fork") });
  });
});

describe("limits hold from a job's first instruction", () => {
  it("which it reads in its own cgroup, as the worker tells them", async () => {
    const flags = ["--memory", "64M", "--pids", "7", "--cpus", "0.5", "--cpu-shares", "512"];
    const script = `cd /sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup) && tail -n +1 memory.max pids.max cpu.max cpu.weight cgroup.procs`;
    const id = await daemon.start(...flags, "--label", "test=first", "--", "sh", "-c", script);
    expect((await daemon.jobs("reader", "wait", id)).code).toBe(0);
    const limits = { "memory.max": String(64 * MIB), "pids.max": "7", "cpu.max": "50000 100000", "cpu.weight": "59" };
    const { pid, job } = await daemon.query(id);
    expect(job.limits).toMatchObject(limits);
    const { stdout } = await daemon.jobs("reader", "stream", id);
    for (const [file, value] of Object.entries(limits)) expect(stdout).toContain(`==> ${file} <==\n${value}\n`);
    expect(stdout).toMatch(new RegExp(`==> cgroup.procs <==\n${pid}\n`));
  });

  it("and which it cannot raise or leave", async () => {
    const script = `cd /sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)
      for file in memory.max pids.max cpu.max; do echo max > $file && echo raised $file; done
      echo $$ > /sys/fs/cgroup/cgroup.procs && echo left
      echo $$ > ../cgroup.procs && echo left
      mkdir below && echo split
      cat memory.max`;
    const ran = await daemon.jobs("writer", "run", "--memory", "64M", "--pids", "7", "--", "sh", "-c", script);
    expect(ran).toMatchObject({ code: 0, stdout: `${64 * MIB}\n` });
  });
});

describe("a limit that this version does not keep", () => {
  it.each(["--device-read-bps", "--device-write-bps", "--device-read-iops", "--device-write-iops", "--blkio-weight"])(
    "%s is refused by its name, and nothing is started",
    async (flag) => {
      const label = `test=refused${flag}`;
      const ran = await daemon.jobs("writer", "start", "--label", label, `${flag}=254:0:1048576`, "--", "true");
      expect(ran).toMatchObject({ code: 2, stdout: "", stderr: expect.stringContaining(`no flag ${flag}`) });
      expect(await daemon.jobs("reader", "list", "-q", "--label", label)).toMatchObject({ code: 0, stdout: "" });
    },
  );

  it("as a value that no kernel takes, it is refused by its name, and nothing is started", async () => {
    const ran = await daemon.jobs("writer", "start", "--label", "test=none", "--memory", "0", "--", "true");
    expect(ran).toMatchObject({ code: 125, stdout: "", stderr: expect.stringContaining("resources.memory.limit") });
    expect(await daemon.jobs("reader", "list", "-q", "--label", "test=none")).toMatchObject({ code: 0, stdout: "" });
  });
});
