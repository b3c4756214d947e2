import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { connect as connectTcp, type Socket } from "node:net";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { unless } from "../../src/testing/root.ts";
import { type Client, ClientError, connect } from "../../src/client/index.ts";
import { noMounts, smallDisk } from "../../src/testing/disks.ts";
import { failing, noInjection } from "../../src/testing/strace.ts";
import { until } from "../../src/testing/processes.ts";
import { modes, testDirectory } from "../../src/worker/testing/worker.ts";
import { type Host, launch, startHost } from "../testing/host.ts";

const noGroups = modes.length > 1 ? undefined : "this host has no usable cgroup v2";
const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const TICKS_PER_S = 100; // USER_HZ, proc_pid_stat(5)

function client(host: Pick<Host, "file" | "server">): Client {
  const pem = (name: string): Buffer => readFileSync(host.file(name));
  return connect({ server: host.server, ca: pem("ca.crt"), cert: pem("writer.crt"), key: pem("writer.key") });
}

/** The gRPC status that a call ends with. */
async function codeOf(call: Promise<unknown>): Promise<string> {
  try {
    await call;
    return "OK";
  } catch (error) {
    if (error instanceof ClientError) return error.code;
    throw error;
  }
}

async function textOf(messages: ReturnType<Client["stream"]>): Promise<string> {
  let text = "";
  for await (const { output } of messages) text += output.toString();
  return text;
}

function descriptors(pid: number): number {
  return readdirSync(`/proc/${pid}/fd`).length;
}

/** The descriptors that a daemon has set aside. */
function reserve(pid: number): number[] {
  const opened = readdirSync(`/proc/${pid}/fd`).map(Number);
  return opened.filter((fd) => fd > 2 && readlinkSync(`/proc/${pid}/fd/${fd}`) === "/dev/null");
}

/** Seconds of processor time that a process has used. */
function cpuS(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_S;
}

describe("a daemon that has few descriptors left", () => {
  const made = new AsyncDisposableStack();
  let host: Host;
  let jobs: Client;
  beforeAll(async () => {
    host = made.use(await startHost());
    jobs = made.use(client(host));
  });
  afterAll(() => made.disposeAsync());

  /** Leaves it so many; disposing takes that back. */
  function leave(count: number): Disposable {
    return limited(descriptors(host.pid) + count);
  }

  /** Has it open none from this number on; disposing takes that back. */
  function limited(end: number): Disposable {
    const limit = (soft: number): Buffer => execFileSync("prlimit", ["--pid", String(host.pid), `--nofile=${soft}:`]);
    limit(end);
    return { [Symbol.dispose]: () => limit(4096) };
  }

  test("leaves nothing of starts that it refuses, and ends when it is told to", async () => {
    // The connection, and what a daemon reads once, are there before.
    await jobs.wait((await jobs.start({ command: "true" })).jobId);
    const before = readdirSync(join(host.dir, "state/jobs"));
    {
      using _none = limited(Math.max(...reserve(host.pid)) + 1);
      const starts = Array.from({ length: 12 }, () => codeOf(jobs.start({ command: "nowhere" })));
      expect(await Promise.all(starts)).toContain("RESOURCE_EXHAUSTED");
    }
    expect(readdirSync(join(host.dir, "state/jobs"))).toEqual(before);
    await (
      await host.end("SIGTERM")
    )();
    using other = client(host);
    expect(await codeOf(other.list())).toBe("OK");
  });

  test("refuses streams as exhausted, and starts only so, lets what runs go on, can stop and tell it, and recovers", async () => {
    const command = { command: "sh", args: ["-c", "echo ready; exec sleep 1000"] };
    const [ended, stopped] = [await jobs.start({ command: "true" }), await jobs.start(command)];
    await jobs.wait(ended.jobId);
    const short = await jobs.start({
      command: "sh",
      args: ["-c", 'until [ -e "$0" ]; do sleep 0.01; done; exit 4', join(host.dir, "gate")],
    });
    const followers: Promise<string>[] = [];
    const given = new AbortController();
    {
      using _few = leave(9);
      const follow = () => jobs.stream({ jobId: stopped.jobId, follow: true }, { signal: given.signal });
      for (let i = 0; i < 12; i++) followers.push(codeOf(textOf(follow())));
      const first = await Promise.race(followers);
      expect(first).toBe("RESOURCE_EXHAUSTED");
      // A start gives back a descriptor, which a stream may take before the next supervisor needs it.
      const starts = Array.from({ length: 20 }, () => {
        followers.push(codeOf(textOf(follow())));
        return codeOf(jobs.start({ command: "true" }));
      });
      expect(["OK", "RESOURCE_EXHAUSTED"]).toEqual(expect.arrayContaining([...new Set(await Promise.all(starts))]));
      execFileSync("touch", [join(host.dir, "gate")]);
      expect((await jobs.wait(short.jobId)).job?.ended?.exitCode).toBe(4);
      expect((await jobs.stop({ jobId: stopped.jobId })).job?.ended?.signal).toBe(15);
      expect((await jobs.query(stopped.jobId)).exited).toBe(true);
      given.abort();
      expect([...new Set(await Promise.all(followers))].toSorted()).toEqual(["OK", "RESOURCE_EXHAUSTED"]);
    }
    expect(await textOf(jobs.stream({ jobId: stopped.jobId }))).toBe("ready\n");
    const again = await jobs.start({ command: "true" });
    expect((await jobs.wait(again.jobId)).job?.ended?.exitCode).toBe(0);
    const spares = readdirSync(join(host.dir, "state/jobs/.spares"));
    expect(spares.length).toBeLessThanOrEqual(6);
  });

  test("neither ends nor spins when more connections come than it has descriptors for", async () => {
    const { port, hostname } = new URL(`tcp://${host.server}`);
    const sockets: Socket[] = [];
    {
      using _few = leave(4);
      for (let i = 0; i < 40; i++) {
        const socket = connectTcp(Number(port), hostname).on("error", () => {});
        sockets.push(socket);
        await Promise.race([once(socket, "connect"), once(socket, "close")]);
      }
      const before = cpuS(host.pid);
      await setTimeout(1000);
      expect(cpuS(host.pid) - before).toBeLessThan(0.5);
      expect(await codeOf(jobs.list())).toBe("OK");
    }
    for (const socket of sockets) socket.destroy();
    using other = client(host);
    expect(await codeOf(other.list())).toBe("OK");
  });
});

describe("a daemon whose disk fails", unless(noInjection ?? noMounts), () => {
  const made = new AsyncDisposableStack();
  let host: Host;
  let jobs: Client;
  let big: string;
  beforeAll(async () => {
    host = made.use(await startHost());
    jobs = made.use(client(host));
    ({ jobId: big } = await jobs.start({ command: "sh", args: ["-c", "yes | head -c 40000000"] }));
    await jobs.wait(big);
    execFileSync("mkfifo", ["-m", "666", join(host.dir, "gate")]);
  });
  afterAll(() => made.disposeAsync());
  const output = (id: string): string => join(host.dir, "state/jobs", id, "output");

  test("ends a stream whose reading fails, one whose client reads slowly too, and no other call", async () => {
    const slow = jobs.stream({ jobId: big });
    await slow.next();
    const { jobId: other } = await jobs.start({ command: "echo", args: ["other"] });
    {
      await using fault = await failing(host.pid, "pread64", "EIO", output(big));
      const read = codeOf(textOf(jobs.stream({ jobId: big })));
      await fault.met();
      expect(await read).toBe("DATA_LOSS");
      expect(await codeOf(textOf(slow))).toBe("DATA_LOSS");
      expect(await textOf(jobs.stream({ jobId: other, follow: true }))).toBe("other\n");
    }
    expect((await textOf(jobs.stream({ jobId: big }))).length).toBe(40_000_000);
  });

  test.each(["EIO", "EROFS", "EDQUOT"])(
    "refuses a start whose record meets %s, records ends later, and goes on",
    async (errno) => {
      const { jobId } = await jobs.start({ command: "sleep", args: ["1000"] });
      const journal = join(host.dir, "state/journal.db-wal");
      expect(existsSync(journal)).toBe(true);
      {
        await using fault = await failing(host.pid, "pwrite64", errno, journal);
        expect(await codeOf(jobs.start({ command: "true" }))).toBe("RESOURCE_EXHAUSTED");
        await fault.met();
        expect((await jobs.stop({ jobId })).job?.ended?.how?.$case).toBe("stopped");
        expect((await jobs.query(jobId)).exited).toBe(true);
      }
      const { jobId: later } = await jobs.start({ command: "true" });
      await jobs.wait(later);
      await host.crash();
      expect((await jobs.query(jobId)).job?.ended?.how?.$case).toBe("stopped");
      const left = readdirSync(join(host.dir, "state/jobs")).filter((name) => !name.startsWith("."));
      const { jobs: known } = await jobs.list({ limit: 100 });
      expect(left.toSorted()).toEqual(known.map(({ id }) => id).toSorted());
    },
  );

  test("tells an end whose record cannot be read once it can, and not as lost", async () => {
    const { jobId } = await jobs.start({ command: "sh", args: ["-c", "read x < $0; exit 6", join(host.dir, "gate")] });
    {
      await using fault = await failing(host.pid, "openat", "EIO", join(host.dir, "state/jobs", jobId, "exit"));
      execFileSync("sh", ["-c", 'echo > "$0"', join(host.dir, "gate")]);
      await fault.met(2);
      expect((await jobs.query(jobId)).exited).toBe(false);
    }
    expect((await jobs.wait(jobId)).job?.ended?.how).toEqual({ $case: "exited", value: { code: 6 } });
  });

  test("refuses a follower that nothing can wake, and no other reader", async () => {
    const { jobId } = await jobs.start({ command: "sh", args: ["-c", "echo ready; exec sleep 1000"] });
    {
      await using _fault = await failing(host.pid, "inotify_add_watch", "ENOSPC");
      expect(await codeOf(textOf(jobs.stream({ jobId, follow: true })))).toBe("RESOURCE_EXHAUSTED");
      expect(await codeOf(textOf(jobs.stream({ jobId })))).toBe("OK");
      expect((await jobs.stop({ jobId })).job?.ended?.signal).toBe(15);
    }
    expect(await textOf(jobs.stream({ jobId, follow: true }))).toBe("ready\n");
  });

  test.each(["ENOSPC", "EROFS"])(
    "refuses a start whose cgroup meets %s, and goes on",
    unless(noGroups),
    async (errno) => {
      {
        await using _fault = await failing(host.pid, "mkdir,mkdirat", errno);
        const codes: string[] = [];
        while (codes.at(-1) !== "RESOURCE_EXHAUSTED" && codes.length < 10)
          codes.push(await codeOf(jobs.start({ command: "true" }))); // the first have theirs from before
        expect(codes.at(-1)).toBe("RESOURCE_EXHAUSTED");
      }
      expect(await codeOf(jobs.start({ command: "true" }))).toBe("OK");
    },
  );
});

describe("a daemon that cannot write its log", () => {
  test(
    "for want of room runs on, and once there is some tells how many lines are missing",
    unless(noMounts),
    async () => {
      using directory = testDirectory();
      using disk = smallDisk(join(directory.path, "disk"), 256 * 1024);
      const log = join(disk.path, "jobsd.log");
      await using host = await startHost([], { stderr: log });
      using jobs = client(host);
      const told = (): { msg: string; lines?: number; reason?: string }[] =>
        readFileSync(log, "utf8")
          .split("\n")
          .filter(Boolean)
          .map((line) => JSON.parse(line) as { msg: string });
      const count = (msg: string): number => told().filter((line) => line.msg === msg).length;
      disk.fill();
      // What the last block still takes is 4 KiB.
      for (let i = 0; i < 20; i++) await jobs.wait((await jobs.start({ command: "true" })).jobId);
      disk.empty();
      const { jobId } = await jobs.start({ command: "true" });
      await until(() => told().some(({ lines }) => lines !== undefined), "the loss is told");
      await jobs.wait(jobId);
      const { lines = 0, reason: why, msg } = told().find((line) => line.lines !== undefined) ?? {};
      expect(msg).toBe(`${lines} lines of this log could not be written`);
      expect(why).toContain("ENOSPC");
      await until(
        () => count("job started") + count("job ended") + lines === 2 * 21,
        "every line is there, or counted",
      );
    },
  );

  test("for want of a reader, nor where it listens for want of room, runs on and ends as it is told to", async () => {
    await using host = await startHost();
    const env = {
      JOBSD_LISTEN: "127.0.0.1:0",
      JOBSD_STATE: join(host.dir, "deaf"),
      ...host.certificates,
    };
    const daemon = launch("jobsd", [], env, { stdout: "/dev/full" });
    await daemon.shows('"msg":"listening"', "stderr");
    const server = /"address":"([^"]+)"/.exec(daemon.output.stderr)?.[1] ?? "";
    daemon.child.stderr?.destroy();
    using jobs = client({ file: (name) => host.file(name), server });
    for (let i = 0; i < 3; i++) await jobs.wait((await jobs.start({ command: "true" })).jobId);
    daemon.child.kill("SIGTERM");
    expect(await daemon.ended).toMatchObject({ code: 0 });
  });
});

/** What Node takes for the time moves an hour on at SIGUSR2, and an hour back at SIGHUP. */
const SHIFTED = `let by = 0; const real = Date, now = real.now.bind(real);
process.on("SIGUSR2", () => (by += ${HOUR_MS})).on("SIGHUP", () => (by -= ${HOUR_MS}));
globalThis.Date = class extends real { constructor(...of) { of.length ? super(...of) : super(now() + by); } static now() { return now() + by; } };`;

describe("a daemon whose clock jumps", () => {
  test.each([
    ["an hour on", "SIGUSR2", "SIGHUP"],
    ["an hour back", "SIGHUP", "SIGUSR2"],
  ] as const)("%s tells jobs' times and ends as they are, and its jobs in their order", async (_name, there, back) => {
    const env = { NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(SHIFTED)}` };
    await using host = await startHost([], { env, now: new Date(Date.now() - DAY_MS) });
    using jobs = client(host);
    const command = { command: "sleep", args: ["1000"] };
    const { jobId: limited } = await jobs.start({ ...command, timeLimit: { seconds: 2n, nanos: 0 } });
    const { jobId: runs } = await jobs.start(command);
    process.kill(host.pid, there);
    const elapsedS = async (): Promise<number> => Number((await jobs.query(runs)).job?.usage?.elapsed?.seconds);
    await until(
      () => readFileSync(`/proc/${host.pid}/status`, "utf8").includes("SigPnd:\t0000000000000000"),
      "it has jumped",
    );
    expect(await elapsedS()).toBeLessThan(600);
    // More than have their ids from before.
    const ids: string[] = [];
    for (let i = 0; i < 6; i++) ids.push((await jobs.start({ command: "true" })).jobId);
    expect((await jobs.wait(limited)).job?.ended?.how?.$case).toBe("timedOut");
    await host.crash(); // the next one's clock is right
    expect(await elapsedS()).toBeLessThan(600);
    process.kill(host.pid, back);
    expect(await elapsedS()).toBeLessThan(600);
    const { jobId: last } = await jobs.start({ command: "true" });
    expect((await jobs.list({ limit: 10 })).jobs.map(({ id }) => id)).toEqual([
      last,
      ...ids.toReversed(),
      runs,
      limited,
    ]);
    expect([limited, runs, ...ids, last].toSorted()).toEqual([limited, runs, ...ids, last]);
    const { job } = await jobs.stop({ jobId: runs });
    expect(job?.ended?.signal).toBe(15);
    expect(Number(job?.usage?.elapsed?.seconds)).toBeLessThan(600);
  });
});
