import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { compile, inFlight, rig, variants, type Job } from "./testing/rig.ts";
import { marked, runs, soon, until } from "../testing/processes.ts";
import { readLog } from "./testing/records.ts";

/** Those that end nothing by default, or nothing in an orphaned process group: signal(7), setpgid(2). SIGSTOP (19) stops. */
const HARMLESS = [17, 18, 20, 21, 22, 23, 28];
const DEADLY = Array.from({ length: 64 }, (_, i) => i + 1).filter((signal) => ![...HARMLESS, 19].includes(signal));

describe.each(variants)("$mode, $build", (variant) => {
  test("the time of a start is that of the exec, however short the job", async () => {
    await using it = await rig(variant);
    const program = compile("tells-clock", it);
    await inFlight(200, async () => {
      const { exit, job } = await it.run({ argv: [program] });
      const { startedClockNs } = readLog(job.directory);
      const told = BigInt(job.output());
      expect(told).toBeGreaterThanOrEqual(startedClockNs);
      expect(startedClockNs + BigInt(exit["elapsed_ns"] ?? 0)).toBeGreaterThanOrEqual(told);
    });
  });

  test("exit codes 0 to 255 are recorded", async () => {
    await using it = await rig(variant);
    const codes: unknown[] = [];
    await inFlight(256, async (n) => {
      const { exit } = await it.run({ script: `exit ${n}` });
      codes[n] = exit["code"];
      expect(exit).toMatchObject({ version: 1, cause: "none", escalated: 0, killed: 0, signal: 0, core: 0 });
    });
    expect(codes).toEqual(Array.from({ length: 256 }, (_, n) => n));
  });

  test("every signal that ends a process is recorded, real-time signals too", async () => {
    await using it = await rig(variant);
    const signals = await Promise.all(
      DEADLY.map(async (signal) => {
        const { exit } = await it.run({ script: `ulimit -c 0; kill -${signal} $$; exit 3` });
        expect(exit).toMatchObject({ cause: "none", code: -1, escalated: 0, killed: 0, core: 0 });
        return exit["signal"];
      }),
    );
    expect(signals).toEqual(DEADLY);
  });

  test("signals that end no process end no job", async () => {
    await using it = await rig(variant);
    for (const signal of HARMLESS) {
      const { exit } = await it.run({ script: `kill -${signal} $$; exit 3` });
      expect([signal, exit["code"], exit["signal"]]).toEqual([signal, 3, 0]);
    }
  });

  test("a core dump is recorded where this host makes one", async () => {
    await using it = await rig(variant);
    const cwd = join(it.directory, "cores");
    mkdirSync(cwd, { mode: 0o777 });
    execFileSync("chmod", ["777", cwd]);
    const script = "ulimit -c unlimited && kill -QUIT $$";
    const shell = execFileSync("sh", ["-c", `sh -c '${script}'; true`], {
      cwd,
      encoding: "utf8",
      stdio: ["ignore", "pipe", "pipe"],
    });
    const { exit } = await it.run({ script, cwd });
    const dumps = readdirSync(cwd).length > 0 || shell.includes("core dumped");
    expect(exit).toMatchObject({ code: -1, signal: 3, core: dumps ? 1 : 0 });
  });

  test("times and usage are recorded", async () => {
    await using it = await rig(variant);
    const before = Date.now();
    const { exit, job } = await it.run({ script: "i=0; while [ $i -lt 50000 ]; do i=$((i + 1)); done" });
    const [started, ended, elapsed] = ["started_ns", "ended_ns", "elapsed_ns"].map((key) => Number(exit[key]));
    expect(exit).toMatchObject({ pid: job.pid, code: 0 });
    expect(started).toBeGreaterThanOrEqual((before - 1) * 1e6);
    expect(ended).toBeLessThanOrEqual((Date.now() + 1) * 1e6);
    expect(ended).toBeGreaterThan(started ?? Infinity);
    expect(elapsed).toBeGreaterThan(0);
    expect(Number(exit["user_us"]) + Number(exit["system_us"])).toBeGreaterThan(0);
    expect(exit["max_rss_bytes"]).toBeGreaterThan(100_000);
  });

  test("a grandchild in a session of its own, with the pipes open, delays no end, is killed and counted", async () => {
    await using it = await rig(variant);
    const { exit, job } = await it.run({ script: "(setsid sleep 1000 &); echo out; exit 5" });
    expect(exit).toMatchObject({ cause: "none", code: 5, escalated: 0, killed: 1 });
    expect(job.output()).toBe("out\n");
    const { exit: many } = await it.run({
      script: "for i in 1 2 3 4 5; do (setsid sleep 1000 &); done; kill -KILL $$",
    });
    expect(many).toMatchObject({ cause: "none", code: -1, signal: 9, killed: 5 });
  });

  test("all that was written before the end is in the log, though a grandchild holds the pipes", async () => {
    await using it = await rig(variant);
    const { exit, job } = await it.run({
      script: "(setsid sleep 1000 &); head -c 60000 /dev/zero | tr '\\0' x; echo last >&2",
    });
    expect(exit).toMatchObject({ size: 60005, dropped: 0 });
    expect(job.output().replaceAll("x", "")).toBe("last\n");
  });

  test("strangers that write into the job's output without end delay its end no more", async () => {
    await using it = await rig(variant);
    const job = await it.start({ script: 'read x < "$CUE"; exit 6', logLimitBytes: 1 << 20 });
    const strangers = [1, 2, 1].map((fd) =>
      spawn("sh", ["-c", `exec cat /dev/zero > /proc/${job.pid}/fd/${fd}`], { stdio: "ignore" }),
    );
    await until(() => statSync(join(job.directory, "output")).size > 0, "the strangers write");
    it.cue();
    expect(await job.ended()).toMatchObject({ code: 6 });
    for (const stranger of strangers)
      if (stranger.exitCode === null && stranger.signalCode === null)
        await soon(once(stranger, "exit"), "SIGPIPE ends it");
  });

  test.each(["name", "thread"])(
    "a process that hides by its %s does not outlive its job, neither its end nor a stop, and is counted",
    async (kind) => {
      await using it = await rig(variant);
      const argv = [compile("hides", it), kind];
      // A pid namespace does not outlive its init, and has numbers of its own.
      const hiddenRuns = ({ output }: Job): boolean =>
        variant.mode !== "isolated" && runs(Number(/^ready (\d+)$/m.exec(output())?.[1]));
      const mark = `${it.directory}/mark`;
      const ends = await it.start({ argv: [...argv, "ends"], env: { MARK: mark } });
      expect(await ends.ended()).toMatchObject({ cause: "none", code: 5, killed: 1 });
      expect([marked(mark), hiddenRuns(ends)]).toEqual([[], false]);
      for (const graceMs of [0, 50]) {
        const stopped = await it.start({ argv: [...argv, "waits"], env: { MARK: mark } });
        await stopped.wrote("ready");
        stopped.stop("SIGTERM", graceMs);
        expect(await stopped.ended()).toMatchObject({ cause: "stop", signal: 9, killed: 2 });
        expect([marked(mark), hiddenRuns(stopped)]).toEqual([[], false]);
      }
    },
  );
});
