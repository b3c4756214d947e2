import { describe, expect, test } from "vitest";
import { compile, hardened, rig, variants } from "./testing/rig.ts";
import { unless } from "../testing/root.ts";
import { delaying, noInjection } from "../testing/strace.ts";
import { childrenOf, statOf, until } from "../testing/processes.ts";

const STUBBORN = 'trap "" TERM; echo ready; while :; do sleep 1000; done';
const HOUR_MS = 3_600_000;

describe.each(variants)("$mode, $build", (variant) => {
  test("a job that obeys SIGTERM is not escalated", async () => {
    await using it = await rig(variant);
    const job = await it.start({ argv: ["sleep", "1000"] });
    job.stop("SIGTERM", HOUR_MS);
    expect(await job.ended()).toMatchObject({ cause: "stop", signal: 15, code: -1, escalated: 0, killed: 0 });
  });

  test("a job that ends in its own way at SIGTERM says its last words and keeps its exit code", async () => {
    await using it = await rig(variant);
    const job = await it.start({ argv: [compile("obeys-term", it), "9"] });
    await job.wrote("ready");
    job.stop("SIGTERM", HOUR_MS);
    expect(await job.ended()).toMatchObject({ cause: "stop", signal: 0, code: 9, escalated: 0, killed: 0 });
    expect(job.output()).toBe("ready\nobeyed\n");
  });

  test("the signal is the one that was ordered", async () => {
    await using it = await rig(variant);
    const job = await it.start({ argv: ["sleep", "1000"] });
    job.stop("SIGINT", HOUR_MS);
    expect(await job.ended()).toMatchObject({ cause: "stop", signal: 2, escalated: 0 });
  });

  test("a job that ignores SIGTERM is killed after the grace, not before", async () => {
    await using it = await rig(variant);
    const job = await it.start({ script: STUBBORN });
    await job.wrote("ready");
    await until(() => childrenOf(job.pid).length === 1, "sleep runs");
    const before = performance.now();
    job.stop("SIGTERM", 150);
    expect(await job.ended()).toMatchObject({ cause: "stop", signal: 9, code: -1, escalated: 1, killed: 2 });
    expect(performance.now() - before).toBeGreaterThanOrEqual(150);
  });

  test("with no grace, or SIGKILL, a job is killed at once and nothing is escalated", async () => {
    await using it = await rig(variant);
    for (const [signal, graceMs] of [
      ["SIGTERM", 0],
      ["SIGTERM", -1],
      ["SIGKILL", HOUR_MS],
    ] as const) {
      const job = await it.start({ script: STUBBORN });
      await job.wrote("ready");
      job.stop(signal, graceMs);
      expect(await job.ended()).toMatchObject({ cause: "stop", signal: 9, escalated: 0 });
    }
  });

  test("a stopped process is made to go on, and obeys", async () => {
    await using it = await rig(variant);
    const job = await it.start({ argv: ["sleep", "1000"] });
    process.kill(job.pid, "SIGSTOP");
    await until(() => statOf(job.pid)?.[0] === "T", "the job is stopped");
    job.stop("SIGTERM", HOUR_MS);
    expect(await job.ended()).toMatchObject({ cause: "stop", signal: 15, escalated: 0, killed: 0 });
  });

  test("a second stop can shorten the grace but not lengthen it", async () => {
    await using it = await rig(variant);
    for (const graces of [
      [HOUR_MS, 20],
      [20, HOUR_MS],
    ]) {
      const job = await it.start({ script: STUBBORN });
      await job.wrote("ready");
      for (const graceMs of graces) job.stop("SIGTERM", graceMs);
      expect(await job.ended()).toMatchObject({ cause: "stop", signal: 9, escalated: 1 });
    }
  });

  test("a grace of any size is taken", async () => {
    await using it = await rig(variant);
    const job = await it.start({ script: STUBBORN, timeLimitMs: Number.MAX_SAFE_INTEGER });
    await job.wrote("ready");
    job.stop("SIGTERM", Number.MAX_SAFE_INTEGER);
    job.stop("SIGTERM", 1);
    expect(await job.ended()).toMatchObject({ cause: "stop", signal: 9, escalated: 1 });
  });

  test("at its time limit a job is stopped, and killed after the grace if it does not obey", async () => {
    await using it = await rig(variant);
    const limit = { timeLimitMs: 100, graceMs: 50 };
    const [obeys, ignores, atOnce, inTime] = await Promise.all([
      it.run({ argv: ["sleep", "1000"], ...limit }),
      it.run({ script: STUBBORN, ...limit }),
      it.run({ argv: ["sleep", "1000"], ...limit, graceMs: 0 }),
      it.run({ script: "exit 2", timeLimitMs: HOUR_MS }),
    ]);
    expect(obeys.exit).toMatchObject({ cause: "timeout", signal: 15, escalated: 0, killed: 0 });
    expect(obeys.exit["elapsed_ns"]).toBeGreaterThanOrEqual(99e6);
    expect(ignores.exit).toMatchObject({ cause: "timeout", signal: 9, escalated: 1 });
    expect(ignores.exit["elapsed_ns"]).toBeGreaterThanOrEqual(149e6);
    expect(atOnce.exit).toMatchObject({ cause: "timeout", signal: 9, escalated: 0, killed: 1 });
    expect(inTime.exit).toMatchObject({ cause: "none", code: 2 });
  });

  test("children in sessions of their own are stopped too", async () => {
    await using it = await rig(variant);
    const child = 'setsid sh -c "echo ready; exec sleep 1000" &';
    const job = await it.start({ script: `${child} ${child} ${child} wait` });
    await until(() => job.output().length === 18, "three children are ready");
    job.stop("SIGTERM", HOUR_MS);
    expect(await job.ended()).toMatchObject({ cause: "stop", signal: 15, escalated: 0, killed: 0 });
  });

  test("the job is not over while a child uses its grace, and what is left then is killed", async () => {
    await using it = await rig(variant);
    const job = await it.start({ script: `setsid sh -c '${STUBBORN}' & wait` });
    await job.wrote("ready");
    job.stop("SIGTERM", 100);
    expect(await job.ended()).toMatchObject({ cause: "stop", signal: 15, escalated: 1 });
  });

  test("every process of the tree gets the signal", async () => {
    await using it = await rig(variant);
    const child = compile("obeys-term", it);
    const job = await it.start({
      script: `trap : TERM; ${child} & (${child} &); setsid ${child} & wait; wait; wait; exit 8`,
    });
    await until(() => job.output().length === 18, "three children are ready");
    job.stop("SIGTERM", HOUR_MS);
    expect(await job.ended()).toMatchObject({ cause: "stop", code: 8, escalated: 0, killed: 0 });
    expect(job.output().match(/obeyed/g)).toHaveLength(3);
  });

  test("a child that a second thread forked gets the signal too", async () => {
    await using it = await rig(variant);
    const job = await it.start({ argv: [compile("forks-from-thread", it)] });
    await job.wrote("ready");
    job.stop("SIGTERM", HOUR_MS);
    expect(await job.ended()).toMatchObject({ cause: "stop", code: 0, escalated: 0, killed: 0 });
    expect(job.output()).toBe("ready\nobeyed\n");
  });

  test("a job that forks without end is killed whole", async () => {
    await using it = await rig(variant);
    const job = await it.start({ script: 'trap "" TERM; while :; do (setsid sleep 1000 &); echo x; done' });
    await job.wrote("x\n".repeat(20));
    job.stop("SIGTERM", 0);
    const exit = await job.ended();
    expect(exit).toMatchObject({ cause: "stop", signal: 9 });
    expect(exit["killed"]).toBeGreaterThanOrEqual(20);
  });
});

test("a job that leaves orphans faster than they are reaped meets its time limit", unless(noInjection), async () => {
  const isolated = hardened.find(({ mode }) => mode === "isolated");
  if (!isolated) throw new Error("this test needs a pid namespace, which this host does not give");
  await using it = await rig(isolated);
  const job = await it.start({
    script: `read x < "$CUE"; exec ${compile("orphans", it)} 4`,
    rlimits: [{ resource: 6, soft: 500, hard: 500 }], // RLIMIT_NPROC
    timeLimitMs: 1000,
    graceMs: 0,
  });
  await using _slow = await delaying(job.supervisor, "wait4", 2);
  it.cue();
  expect(await job.ended()).toMatchObject({ cause: "timeout", signal: 9 });
});
