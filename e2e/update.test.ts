import { mkdtempDisposable, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { seconds, type StatsMessage } from "./testing/api.ts";
import type { Ran } from "./testing/cli.ts";
import { type Daemon, startDaemon } from "./testing/daemon.ts";
import { cpuShare, diskOf, growth } from "./testing/measure.ts";

const MIB = 1024 * 1024;
const PROGRAMS = {
  "holds-memory": `my $held = "x" x ($ARGV[0] << 20); $| = 1; print "holds\\n"; sleep 1000;`,
  "forks-forever": "while (1) { defined fork or sleep 1 }",
};

const made = new AsyncDisposableStack();
let daemon: Daemon;
beforeAll(async () => {
  daemon = made.use(await startDaemon({ flags: ["--user", "nobody"] })); // who sees the disk in /tmp
  for (const [name, code] of Object.entries(PROGRAMS))
    await daemon.put(`/programs/${name}`, `#!/usr/bin/perl\n${code}\n`, 0o755);
});
afterAll(() => made.disposeAsync());

function update(id: string, ...flags: readonly string[]): Promise<Ran> {
  return daemon.jobs("writer", "update", ...flags, id);
}

async function withDocument(document: object, use: (file: string) => Promise<Ran>): Promise<Ran> {
  await using directory = await mkdtempDisposable(join(tmpdir(), "jobs-e2e-"));
  const file = join(directory.path, "limits.json");
  await writeFile(file, JSON.stringify(document));
  return await use(file);
}

/** Every limit of a running job as the kernel has it. */
function limitsInKernel(id: string): Promise<string> {
  const files = "*.max *.high *.low *.weight *.burst cpu.idle memory.oom.group cpuset.cpus cpuset.mems";
  return daemon.inside("sh", "-c", `cd /sys/fs/cgroup/jobs-*/${id} && tail -n +1 ${files}`);
}

function kill(...ids: readonly string[]): Promise<unknown> {
  return daemon.jobs("writer", "stop", "--grace", "0", ...ids);
}

async function says(id: string, text: string): Promise<void> {
  await vi.waitFor(async () => expect((await daemon.jobs("reader", "stream", id)).stdout).toContain(text), {
    timeout: 60_000,
    interval: 1_000,
  });
}

describe("a running job whose limits are changed", () => {
  it("gets more CPU, and less", async () => {
    const id = await daemon.start("--cpus", "0.1", "--", "sh", "-c", "while :; do :; done");
    expect(await update(id, "--cpus", "0.5")).toMatchObject({ code: 0, stdout: `${id}\n` });
    const more = await cpuShare(daemon, id);
    await update(id, "--cpus", "0.2");
    const less = await cpuShare(daemon, id);
    const { job } = await daemon.query(id);
    await kill(id);
    expect(more).toBeGreaterThan(0.4);
    expect(more).toBeLessThan(0.6);
    expect(less).toBeGreaterThan(0.17);
    expect(less).toBeLessThan(0.23);
    expect(job).toMatchObject({
      resources: { cpu: { quota: "20000", period: "100000" } },
      limits: { "cpu.max": "20000 100000" },
    });
  });

  it("has room for memory that it had not before", async () => {
    const gate = await daemon.gate();
    const script = `read go < ${gate.path}; exec /programs/holds-memory 96`;
    const id = await daemon.start("--memory", "32M", "--", "sh", "-c", script);
    expect(await update(id, "--memory", "256M")).toMatchObject({ code: 0 });
    await gate.open();
    await says(id, "holds");
    await kill(id);
  });

  it("has no more room for memory that it had before", async () => {
    const gate = await daemon.gate();
    const script = `read go < ${gate.path}; exec /programs/holds-memory 96`;
    const id = await daemon.start("--memory", "256M", "--memory-swap", "256M", "--", "sh", "-c", script);
    expect(await update(id, "--memory", "32M", "--memory-swap", "32M")).toMatchObject({ code: 0 });
    await gate.open();
    expect(await daemon.jobs("reader", "wait", id)).toMatchObject({
      code: 137,
      stdout: expect.stringContaining("out of memory"),
    });
  });

  it("may have more processes", async () => {
    const id = await daemon.start("--pids", "10", "--", "/programs/forks-forever");
    const processes = (count: string): Promise<unknown> =>
      vi.waitFor(async () => expect((await daemon.query(id)).job.usage.processes).toBe(count), {
        timeout: 60_000,
        interval: 1_000,
      });
    await processes("10");
    await update(id, "--pids", "16");
    await processes("16");
    await kill(id);
  });

  it("writes faster to its disk", async () => {
    const { path, number } = await diskOf(daemon);
    const dd = ["dd", "if=/dev/zero", "of=/tmp/updated", "bs=64k", "oflag=direct"];
    const id = await daemon.start("--io-max", `${path}:wbps=512k`, "--", ...dd);
    const written = (): Promise<number> => growth(daemon, id, ({ ioWriteBytes }) => Number(ioWriteBytes), 10);
    const slow = await written();
    expect(await update(id, "--io-max", `${number}:wbps=2M`)).toMatchObject({ code: 0 });
    const fast = await written();
    const { limits } = (await daemon.query(id)).job;
    await kill(id);
    expect(slow / (MIB / 2)).toBeGreaterThan(0.8);
    expect(slow / (MIB / 2)).toBeLessThan(1.2);
    expect(fast / (2 * MIB)).toBeGreaterThan(0.8);
    expect(fast / (2 * MIB)).toBeLessThan(1.2);
    expect(limits?.["io.max"]).toBe(`${number} rbps=max wbps=${2 * MIB} riops=max wiops=max`);
  });

  it("can have its burst and quota moved past each other, either way", async () => {
    const id = (
      await withDocument({ cpu: { quota: 20_000, burst: 10_000 } }, (file) =>
        daemon.jobs("writer", "start", "--resources", file, "--", "sleep", "1000"),
      )
    ).stdout.trim();
    for (const [quota, burst] of [
      [60_000, 40_000],
      [8_000, 4_000],
    ]) {
      const ran = await withDocument({ cpu: { quota, burst } }, (file) => update(id, "--resources", file));
      expect(ran).toMatchObject({ code: 0 });
      const { limits } = (await daemon.query(id)).job;
      expect(limits).toMatchObject({ "cpu.max": `${quota} 100000`, "cpu.max.burst": String(burst) });
    }
    await kill(id);
  });
});

describe("an update that is refused", () => {
  const LIMITS = {
    pids: { limit: 20 },
    memory: { limit: 64 * MIB, swap: 96 * MIB, reservation: 16 * MIB },
    cpu: { shares: 2048, quota: 50_000, period: 50_000, burst: 10_000, cpus: "0", mems: "0" },
    hugepageLimits: [{ pageSize: "2MB", limit: 4 * MIB }],
    unified: { "memory.high": String(48 * MIB) },
  };
  const start = async (): Promise<string> =>
    (
      await withDocument(LIMITS, (file) => daemon.jobs("writer", "start", "--resources", file, "--", "sleep", "1000"))
    ).stdout.trim();

  it.each([
    ["memory.high", "lots", "EINVAL"],
    ["rdma.max", "mlx5_1 hca_handle=1", "ENODEV"],
  ])("by the kernel, for %s and last of all, changes nothing", async (file, value, errno) => {
    const { path } = await diskOf(daemon);
    const id = await start();
    const [before, { job }] = [await limitsInKernel(id), await daemon.query(id)];
    const device = [{ path, rate: MIB }];
    const document = {
      pids: { limit: 30 },
      memory: { limit: 128 * MIB, swap: -1, reservation: -1 },
      cpu: { idle: 1, quota: 20_000, period: 100_000, burst: 0, cpus: "0-1" },
      blockIO: { weight: 500, throttleReadBpsDevice: device, throttleWriteIOPSDevice: device },
      hugepageLimits: [{ pageSize: "2MB", limit: 2 * MIB }],
      unified: { "memory.oom.group": "0", [file]: value },
    };
    const ran = await withDocument(document, (limits) => update(id, "--resources", limits));
    expect(ran).toMatchObject({
      code: 1,
      stdout: "",
      stderr: expect.stringContaining(`the kernel refused ${value} for ${file} (${errno})`),
    });
    expect(await limitsInKernel(id)).toBe(before);
    expect((await daemon.query(id)).job).toMatchObject({ limits: job.limits, resources: job.resources });
    // Without what the kernel did not take, all of it is taken.
    const rest = { ...document, unified: { "memory.oom.group": "0" } };
    expect(await withDocument(rest, (limits) => update(id, "--resources", limits))).toMatchObject({ code: 0 });
    expect(await limitsInKernel(id)).not.toBe(before);
    await kill(id);
  });

  it("because a reader asked for it changes nothing, and is recorded", async () => {
    const id = await start();
    const before = await limitsInKernel(id);
    const ran = await daemon.jobs("reader", "update", "--memory", "32M", id);
    expect(ran).toMatchObject({ code: 1, stdout: "", stderr: expect.stringContaining("needs the role writer") });
    expect(await limitsInKernel(id)).toBe(before);
    await update(id, "--memory", "80M");
    const records = (await daemon.audit()).filter(({ method }) => method === "/jobs.v1.WorkerService/Update").slice(-3);
    const limits = ["memory.limit"];
    expect(records).toMatchObject([
      { decision: "denied", code: "PERMISSION_DENIED" },
      { decision: "allowed", stage: "begin", jobId: id, request: { limits } },
      { decision: "allowed", stage: "end", code: "OK", jobId: id },
    ]);
    await kill(id);
  });

  it("because the job uses more changes nothing, where that was asked for", async () => {
    const id = await daemon.start("--memory", "128M", "--", "/programs/holds-memory", "64");
    await says(id, "holds");
    const before = await limitsInKernel(id);
    const ran = await withDocument({ memory: { limit: 16 * MIB, checkBeforeUpdate: true } }, (file) =>
      update(id, "--resources", file),
    );
    expect(ran).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/resources.memory.limit: 16777216 is below the \d+ bytes/),
    });
    expect(await limitsInKernel(id)).toBe(before);
    await kill(id);
  });

  it("because the job has ended says so", async () => {
    const id = await daemon.start("--", "true");
    await daemon.jobs("reader", "wait", id);
    expect(await update(id, "--memory", "32M")).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("has ended"),
    });
  });
});

describe("what a job uses", () => {
  it("is shown as it runs: more and more periods throttled, longer and longer waits", async () => {
    const script = "for child in 1 2; do (while :; do :; done) & done; wait";
    const id = await daemon.start("--cpus", "0.2", "--", "sh", "-c", script);
    const watching = daemon.launch("reader", "stats", "--json", "--interval", "500ms", id);
    const lines = (): StatsMessage[] =>
      watching
        .stdout()
        .split("\n")
        .slice(0, -1)
        .map((line): StatsMessage => JSON.parse(line));
    await vi.waitFor(() => expect(lines().length).toBeGreaterThan(8), { timeout: 60_000, interval: 500 });
    await kill(id);
    expect((await watching.ended).code).toBe(0);
    const all = lines();
    const [first, later] = [all[0]?.usage, all[7]?.usage];
    expect(Number(later?.cpuThrottledPeriods)).toBeGreaterThan(Number(first?.cpuThrottledPeriods));
    expect(Number(later?.cpuPeriods)).toBeGreaterThanOrEqual(Number(later?.cpuThrottledPeriods));
    const waited = (usage: StatsMessage["usage"] | undefined): number =>
      usage?.cpuPressure ? seconds(usage.cpuPressure.some.total) : Number.NaN;
    expect(waited(later)).toBeGreaterThan(waited(first));
    expect(all.slice(0, -1).some(({ end }) => end)).toBe(false);
    expect(all.at(-1)?.end).toMatchObject({ state: "STATE_ENDED", ended: { stopped: { by: "writer" } } });
    expect((await daemon.query(id)).job.usage).toEqual(all.at(-1)?.usage);
  });

  it("shows how it waits for memory that its limit takes away from it", async () => {
    const id = await daemon.start(
      "--memory",
      "128M",
      "--",
      "sh",
      "-c",
      "while :; do dd if=/dev/zero of=/tmp/cached bs=1M count=64 2>&1; done",
    );
    expect(await update(id, "--memory", "16M")).toMatchObject({ code: 0 });
    await vi.waitFor(
      async () => {
        const { memoryPressure } = (await daemon.query(id)).job.usage;
        expect(memoryPressure && seconds(memoryPressure.some.total)).toBeGreaterThan(0);
      },
      { timeout: 60_000, interval: 1_000 },
    );
    await kill(id);
  });

  it("is a table for a person, and one line of it when no more is wanted", async () => {
    const id = await daemon.start("--memory", "64M", "--", "sleep", "1000");
    const { code, stdout } = await daemon.jobs("reader", "stats", "--once", id);
    expect(code).toBe(0);
    expect(stdout).toMatch(
      /^ELAPSED +CPU +THROTTLED +MEMORY .*\n +\S+ +[\d.]+% +0% +[\d.]+[KM]? .* 1 +\d+% +\d+% +\d+%\n$/,
    );
    await kill(id);
  });
});

describe("a process that is killed for memory", () => {
  const run = (group: string, script: string): Promise<Ran> =>
    withDocument({ memory: { limit: 32 * MIB, swap: 32 * MIB }, unified: { "memory.oom.group": group } }, (file) =>
      daemon.jobs("writer", "start", "--resources", file, "--", "sh", "-c", script),
    );
  const ended = async ({ stdout }: Ran) => {
    const id = stdout.trim();
    const { stdout: words } = await daemon.jobs("reader", "wait", id);
    return { words, job: (await daemon.query(id)).job };
  };

  it("is told of beside the job's own end, when that goes on without it", async () => {
    const { words, job } = await ended(await run("0", "/programs/holds-memory 96; echo went on; exit 3"));
    expect(words).toContain("exited with code 3; the kernel killed 1 process of it for memory");
    expect(job.ended).toMatchObject({ exited: { code: 3 }, killed: 0 });
    expect(job.usage).toMatchObject({ oomKills: "1", oomGroupKills: "0" });
  });

  it("is counted once, as all the others of its job that are killed with it", async () => {
    const script = "sleep 1000 & sleep 1000 & exec /programs/holds-memory 96";
    const { words, job } = await ended(await run("1", script));
    expect(words).toContain("out of memory: the kernel killed the whole job, 3 processes");
    expect(job.ended).toMatchObject({ outOfMemory: { kills: "3", wholeJob: true }, signal: 9 });
    expect(job.usage).toMatchObject({ oomKills: "4", oomGroupKills: "1" });
  });
});
