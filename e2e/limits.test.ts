import { mkdtempDisposable, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { seconds } from "./testing/api.ts";
import { type Daemon, startDaemon } from "./testing/daemon.ts";
import { cpuShare, diskOf } from "./testing/measure.ts";

const MIB = 1024 * 1024;
const PROGRAMS = {
  // Four times the limit that it is given, and no more: without a limit it ends well.
  "eats-memory": `$held = "x" x ${128 * MIB};`,
  "forks-forever": "while (1) { defined fork or sleep 1 }",
};

const made = new AsyncDisposableStack();
let daemon: Daemon;
beforeAll(async () => {
  daemon = made.use(await startDaemon({ flags: ["--allow-root", "--user", "nobody"] }));
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

describe("a job with a fifth of a CPU", () => {
  it("gets a fifth, while another one without a limit gets more", async () => {
    const limited = await daemon.start("--cpus", "0.2", "--", "sh", "-c", "while :; do :; done");
    const free = await daemon.start("--", "sh", "-c", "while :; do :; done");
    const [share, freeShare] = await Promise.all([cpuShare(daemon, limited), cpuShare(daemon, free)]);
    const { job } = await daemon.query(limited);
    await kill(limited, free);
    expect(share).toBeGreaterThan(0.17);
    expect(share).toBeLessThan(0.23);
    expect(freeShare).toBeGreaterThan(0.4);
    expect(job.limits).toMatchObject({ "cpu.max": "20000 100000" });
    expect(seconds(job.usage.cpuThrottled ?? "0s")).toBeGreaterThan(10);
  });

  it("gets a fifth together with all its children", async () => {
    const script = "for child in 1 2 3; do setsid sh -c 'while :; do :; done' & done; wait";
    const id = await daemon.start("--cpus", "0.2", "--", "sh", "-c", script);
    const share = await cpuShare(daemon, id);
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
      stderr: expect.stringContaining("out of memory: the kernel killed the whole job, 1 process\n"),
    });
    const [id = ""] = (await daemon.jobs("reader", "list", "-q", "--label", "test=oom")).stdout.split("\n");
    const { exitCode, job } = await daemon.query(id);
    expect(exitCode).toBe(-1);
    expect(job.ended).toMatchObject({ outOfMemory: { kills: "1", wholeJob: true }, signal: 9 });
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
    const { job } = await daemon.query(id);
    expect(job.limits).toMatchObject(limits);
    const { stdout } = await daemon.jobs("reader", "stream", id);
    for (const [file, value] of Object.entries(limits)) expect(stdout).toContain(`==> ${file} <==\n${value}\n`);
    // Its init, the supervisor, is 1.
    expect(stdout).toMatch(/==> cgroup.procs <==\n2\n/);
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

describe("a job whose disk is throttled", () => {
  /** The rate that dd gets, in bytes a second; past the page cache, so that the disk itself is what it waits for. */
  const RATE = MIB;
  async function rateOf(flags: readonly string[], ...operands: readonly string[]): Promise<number> {
    const dd = ["dd", "bs=64k", ...operands];
    const ran = await daemon.jobs("writer", "run", "--env", "LC_ALL=C", ...flags, "--", ...dd);
    expect(ran).toMatchObject({ code: 0, stdout: "" });
    const [, bytes, took] = /^(\d+) bytes .* copied, ([\d.e-]+) s/m.exec(ran.stderr) ?? [];
    return Number(bytes) / Number(took);
  }
  const write = ["if=/dev/zero", "of=/tmp/throttled", "count=160", "oflag=direct"];
  const read = ["if=/tmp/throttled", "of=/dev/null", "count=160", "iflag=direct"];

  it("writes and reads at the rates that it has, and one without a limit faster", async () => {
    const { path } = await diskOf(daemon);
    expect(await rateOf([], ...write)).toBeGreaterThan(3 * RATE);
    const written = await rateOf(["--io-max", `${path}:wbps=1M`], ...write, "conv=notrunc");
    expect(written / RATE).toBeGreaterThan(0.85);
    expect(written / RATE).toBeLessThan(1.15);
    const [all, some] = await Promise.all([rateOf([], ...read), rateOf(["--io-max", `${path}:rbps=1M`], ...read)]);
    expect(all).toBeGreaterThan(3 * RATE);
    expect(some / RATE).toBeGreaterThan(0.85);
    expect(some / RATE).toBeLessThan(1.15);
  });

  it("makes as many operations a second as it may", async () => {
    const { number } = await diskOf(daemon);
    const blocks = ["if=/dev/zero", "of=/tmp/throttled", "count=1000", "oflag=direct", "conv=notrunc"];
    // Of a few a second the kernel lets fewer through: it counts whole ones, in slices of 100 ms.
    const operations = (await rateOf(["--io-max", `${number}:wiops=100`], ...blocks)) / (64 * 1024);
    expect(operations).toBeGreaterThan(85);
    expect(operations).toBeLessThan(115);
  });

  it("is told with the disk's number, all of its rates and its weight", async () => {
    const { path, number } = await diskOf(daemon);
    const flags = ["--io-max", `${path}:rbps=2M,wbps=max`, "--io-max", `${number}:riops=1k`, "--io-weight", "500"];
    const id = await daemon.start(...flags, "--", "true");
    const { limits = {} } = (await daemon.query(id)).job;
    expect(limits["io.max"]).toBe(`${number} rbps=${2 * MIB} wbps=max riops=1000 wiops=max`);
    // BFQ has a file of its own where it is loaded.
    expect(limits["io.bfq.weight"] ?? limits["io.weight"]).toMatch(/^default (500|4950)\b/);
  });

  it.each([
    ["/dev/null", "/dev/null"],
    ["/no/such/device", "/no/such/device"],
    ["4095:0", "4095:0 rbps=1048576 for io.max (ENODEV)"],
  ])("is not started when its disk is %s, which is none", async (device, message) => {
    const ran = await daemon.jobs(
      "writer",
      "start",
      "--label",
      "test=nodisk",
      "--io-max",
      `${device}:rbps=1M`,
      "--",
      "true",
    );
    expect(ran).toMatchObject({ code: 125, stdout: "", stderr: expect.stringContaining(message) });
    expect(await daemon.jobs("reader", "list", "-q", "--label", "test=nodisk")).toMatchObject({ code: 0, stdout: "" });
  });
});

describe("a job of some CPUs and memory nodes", () => {
  it("runs on those alone", async () => {
    const flags = ["--cpuset-cpus", "0", "--cpuset-mems", "0"];
    const ran = await daemon.jobs("writer", "run", ...flags, "--", "grep", "_allowed_list", "/proc/self/status");
    expect(ran).toEqual({ code: 0, stderr: "", stdout: "Cpus_allowed_list:\t0\nMems_allowed_list:\t0\n" });
  });

  it("is not started when they are not there, since the kernel would give it all", async () => {
    const ran = await daemon.jobs("writer", "start", "--cpuset-cpus", "0,4096", "--", "true");
    expect(ran).toMatchObject({ code: 125, stdout: "", stderr: expect.stringContaining("resources.cpu.cpus: 0,4096") });
  });
});

describe("a job with device rules", () => {
  // A device that every user may write, which none of the rules below is about: the kernel's log.
  const NODE = "/tmp/kmsg";
  beforeAll(() => daemon.inside("sh", "-c", `mknod -m 666 ${NODE} c 1 11; mknod -m 666 /tmp/disk b 7 0`));
  /** Tells what a job may do, in the order of its lines. */
  const script = `
    (: < /dev/zero) && echo zero is read
    (: > /dev/zero) && echo zero is written
    (: > ${NODE}) && echo the log is written
    mknod /tmp/made-$$ c 1 5 && echo a node is made
    setsid sh -c ': > ${NODE}' && echo a grandchild writes the log`;
  const can = async (user: string, ...flags: readonly string[]): Promise<string[]> => {
    const ran = await daemon.jobs("writer", "run", "--user", user, ...flags, "--", "sh", "-c", script);
    return ran.stdout.split("\n").filter(Boolean);
  };
  const ANY = ["zero is read", "zero is written", "the log is written", "a grandchild writes the log"];

  const USUAL = ANY.slice(0, 2);

  it.each(["nobody", "root"])("opens as %s what they allow", async (user) => {
    expect(await can(user, "--device", "/tmp/disk")).toEqual(USUAL);
    expect(await can(user, "--device", "c:1:11:w")).toEqual(ANY);
    expect(await can(user, "--device", `${NODE}:r`)).toEqual(USUAL);
  });

  it("is one of root's that has none; another without rules opens what modes allow", async () => {
    expect(await can("root")).toEqual(USUAL);
    expect(await can("nobody")).toEqual(ANY);
  });

  it("may be denied one access to one device, in a document", async () => {
    await using directory = await mkdtempDisposable(join(tmpdir(), "jobs-e2e-"));
    const file = join(directory.path, "devices.json");
    const devices = [{ allow: true }, { allow: false, type: "c", major: 1, minor: 5, access: "w" }];
    await writeFile(file, JSON.stringify({ devices }));
    expect(await can("nobody", "--resources", file)).toEqual(ANY.toSpliced(1, 1));
    const id = await daemon.start("--resources", file, "--", "cp", "/dev/null", "/dev/zero");
    expect((await daemon.jobs("reader", "wait", id)).code).toBe(1);
    expect((await daemon.jobs("reader", "stream", id)).stderr).toContain("Operation not permitted");
  });

  it.each([
    ["/no/such/device", 'resources.devices[0].path: "/no/such/device" is not a device of this worker'],
    ["c:4096:0", "resources.devices[0].major: 4096 is not between 0 and 4095"],
  ])("is not started when one is %s, which is none", async (device, message) => {
    const ran = await daemon.jobs("writer", "start", "--device", device, "--", "true");
    expect(ran).toMatchObject({ code: 125, stdout: "", stderr: expect.stringContaining(message) });
  });
});

describe("a document of limits", () => {
  const start = async (document: object): Promise<Awaited<ReturnType<Daemon["jobs"]>>> => {
    await using directory = await mkdtempDisposable(join(tmpdir(), "jobs-e2e-"));
    const file = join(directory.path, "limits.json");
    await writeFile(file, JSON.stringify(document));
    return await daemon.jobs("writer", "start", "--resources", file, "--", "sleep", "1000");
  };

  it("is written whole, and told as the kernel has it", async () => {
    const document = {
      pids: { limit: 0 },
      memory: { limit: 64 * MIB, swap: 96 * MIB, reservation: 16 * MIB, checkBeforeUpdate: true },
      cpu: { shares: 2048, quota: 50_000, period: 50_000, burst: 10_000, cpus: "0", mems: "0" },
      hugepageLimits: [{ pageSize: "2MB", limit: 4 * MIB }],
      unified: { "memory.high": String(48 * MIB) },
    };
    const { stdout, stderr } = await start(document);
    expect(stderr).toBe("");
    const id = stdout.trim();
    const limits = {
      "pids.max": "1",
      "memory.swap.max": String(32 * MIB),
      "memory.max": String(64 * MIB),
      "memory.oom.group": "1",
      "memory.low": String(16 * MIB),
      "cpu.weight": "174",
      "cpu.max": "50000 50000",
      "cpu.max.burst": "10000",
      "cpuset.cpus": "0",
      "cpuset.mems": "0",
      "hugetlb.2MB.max": String(4 * MIB),
      "hugetlb.2MB.rsvd.max": String(4 * MIB),
      "memory.high": String(48 * MIB),
    };
    expect((await daemon.query(id)).job.limits).toEqual(limits);
    for (const [file, value] of Object.entries(limits)) expect((await cgroupFile(id, file)).trim()).toBe(value);
    await kill(id);
  });

  it("runs a job only when nothing else wants the CPU, and then it has no weight", async () => {
    const id = (await start({ cpu: { idle: 1, shares: 2048 } })).stdout.trim();
    expect((await daemon.query(id)).job.limits).toEqual({ "cpu.idle": "1" });
    expect((await cgroupFile(id, "cpu.weight")).trim()).toBe("0");
    await kill(id);
  });

  it.each([
    ["memory.nonsense", "1", "the kernel refused 1 for memory.nonsense (ENOENT)"],
    ["memory.high", "lots", "the kernel refused lots for memory.high (EINVAL)"],
    ["rdma.max", "mlx5_1 hca_handle=1", "the kernel refused mlx5_1 hca_handle=1 for rdma.max (ENODEV)"],
    ["cgroup.freeze", "1", 'resources.unified["cgroup.freeze"]'],
  ])("is refused when the kernel refuses %s = %s, and no group is left", async (file, value, message) => {
    const before = await daemon.inside("sh", "-c", "ls -d /sys/fs/cgroup/jobs-*/*/ | wc -l");
    const ran = await start({ memory: { limit: 64 * MIB }, unified: { [file]: value } });
    expect(ran).toMatchObject({ code: 125, stdout: "", stderr: expect.stringContaining(message) });
    expect(await daemon.inside("sh", "-c", "ls -d /sys/fs/cgroup/jobs-*/*/ | wc -l")).toBe(before);
  });
});

describe("a job with a limit on huge pages", () => {
  /** The kernel's pool, for as long as a test needs it. */
  async function pool(pages: number): Promise<AsyncDisposable> {
    const file = "/proc/sys/vm/nr_hugepages";
    const before = (await daemon.inside("cat", file)).trim();
    const set = (count: string): Promise<string> => daemon.inside("sh", "-c", `echo ${count} > ${file}`);
    await set(String(Number(before) + pages));
    return {
      async [Symbol.asyncDispose]() {
        await set(before);
      },
    };
  }

  it("gets as many as it may, and no more", async () => {
    // mmap(2) with MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB.
    const call =
      "my $mmap = `uname -m` =~ /x86/ ? 9 : 222; my $at = syscall($mmap, 0, $ARGV[0] << 21, 3, 0x40022, -1, 0);";
    await daemon.put(
      "/programs/maps",
      `#!/usr/bin/perl\n${call} print $at == -1 ? "refused\\n" : "mapped\\n";\n`,
      0o755,
    );
    await using _ = await pool(4);
    await using directory = await mkdtempDisposable(join(tmpdir(), "jobs-e2e-"));
    const file = join(directory.path, "limits.json");
    await writeFile(file, JSON.stringify({ hugepageLimits: [{ pageSize: "2MB", limit: 4 * MIB }] }));
    const maps = async (pages: string, ...flags: string[]): Promise<string> =>
      (await daemon.jobs("writer", "run", ...flags, "--", "/programs/maps", pages)).stdout;
    expect(await maps("3")).toBe("mapped\n");
    expect(await maps("2", "--resources", file)).toBe("mapped\n");
    expect(await maps("3", "--resources", file)).toBe("refused\n");
  });
});

describe("a limit that cannot be kept", () => {
  it("as a value that no kernel takes, it is refused by its name, and nothing is started", async () => {
    const ran = await daemon.jobs("writer", "start", "--label", "test=none", "--memory", "0", "--", "true");
    expect(ran).toMatchObject({ code: 125, stdout: "", stderr: expect.stringContaining("resources.memory.limit") });
    expect(await daemon.jobs("reader", "list", "-q", "--label", "test=none")).toMatchObject({ code: 0, stdout: "" });
  });
});
