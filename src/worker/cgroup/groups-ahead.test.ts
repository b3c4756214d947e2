import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import {
  finished,
  groupsIn,
  modes,
  refused,
  rmGroup,
  run,
  startReady,
  testDaemon,
  testDirectory,
  testWorker,
  until,
  waits,
} from "../testing/worker.ts";
import { AHEAD } from "./groups-ahead.ts";
import { openHierarchy } from "./hierarchy.ts";

describe.each(modes.filter(([mode]) => mode === "with cgroup v2"))("a worker %s", (_mode, options) => {
  test("makes groups ahead for the next jobs, replaces those that are taken, and uses them in their order", async () => {
    await using worker = await testWorker(options);
    const cgroup = worker.cgroup ?? "";
    const before = groupsIn(cgroup);
    expect(before).toHaveLength(AHEAD);
    const jobs = [];
    for (let i = 0; i < AHEAD + 2; i++) jobs.push((await finished(worker, run("true"))).id);
    expect(jobs.slice(0, AHEAD)).toEqual(before);
    await until("as many are there", () => groupsIn(cgroup).length === AHEAD);
    expect([...jobs, ...groupsIn(cgroup)].toSorted()).toEqual([...jobs, ...groupsIn(cgroup)]);
  });

  test("starts more jobs at once than it has groups ahead", async () => {
    await using worker = await testWorker(options);
    const jobs = await Promise.all(Array.from({ length: 3 * AHEAD }, () => finished(worker, run("true"))));
    expect(jobs.map(({ ended }) => ended?.exitCode)).toEqual(jobs.map(() => 0));
    expect(new Set(jobs.map(({ id }) => id)).size).toBe(jobs.length);
  });

  test("removes these groups when it closes, and no job's group", async () => {
    await using worker = await testWorker(options);
    const { id } = await startReady(worker, waits);
    await worker.close();
    expect(groupsIn(worker.cgroup ?? "")).toEqual([id]);
    await using again = await testWorker({ ...options, stateDir: worker.stateDir });
    expect(groupsIn(again.cgroup ?? "")).toHaveLength(1 + AHEAD);
  });

  test("removes the groups that a killed daemon had made ahead, and keeps those of its jobs", async () => {
    using directory = testDirectory();
    await using daemon = await testDaemon({ ...options, stateDir: directory.path });
    const { id } = await daemon.start(waits);
    await daemon.kill();
    await using worker = await testWorker({ ...options, stateDir: directory.path });
    expect(groupsIn(worker.cgroup ?? "")).toContain(id);
    await until("the others are gone", () => groupsIn(worker.cgroup ?? "").length === 1 + AHEAD);
    expect(groupsIn(worker.cgroup ?? "")[0]).toBe(id);
    await worker.stop(id, { by: "tester", graceMs: 0 });
  });

  test("removes the group of a failed start, and makes another one ahead", async () => {
    await using worker = await testWorker(options);
    const [first = "", ...others] = groupsIn(worker.cgroup ?? "");
    await refused(() => worker.start(run("/no/such/program")));
    expect(existsSync(join(worker.cgroup ?? "", first))).toBe(false);
    expect(groupsIn(worker.cgroup ?? "")).toEqual([...others, expect.any(String)]);
    expect(worker.traces()).toEqual([]);
  });

  test("fails only the starts whose groups somebody removed", async () => {
    await using worker = await testWorker(options);
    for (const id of groupsIn(worker.cgroup ?? "")) rmGroup(join(worker.cgroup ?? "", id));
    for (let i = 0; i < AHEAD; i++)
      expect(await refused(() => worker.start(run("true")))).toMatchObject({
        code: "unsupported",
        facts: { stage: "cgroup", errno: "ENOENT" },
      });
    expect((await finished(worker, run("true"))).ended?.exitCode).toBe(0);
  });

  test("refuses a start for which no group can be made, says why, and leaves nothing behind", async () => {
    await using worker = await testWorker(options);
    writeFileSync(join(worker.cgroup ?? "", "cgroup.max.descendants"), String(AHEAD));
    const ids = await Promise.all(Array.from({ length: AHEAD }, async () => (await worker.start(waits)).job.id));
    const before = worker.traces();
    const error = await refused(() => worker.start({ ...waits, requestId: "r" }));
    expect(error).toMatchObject({ code: "exhausted", facts: { errno: "EAGAIN" } });
    expect(worker.traces()).toEqual(before);
    await worker.stop(ids[0] ?? "", { by: "tester", graceMs: 0 });
    expect((await worker.start({ ...waits, requestId: "r" })).alreadyStarted).toBe(false);
  });
});

test("a worker without cgroups makes no groups ahead", async () => {
  await using worker = await testWorker(modes[0]?.[1]);
  expect(worker.cgroup).toBeUndefined();
  expect(openHierarchy("any", modes[0]?.[1].cgroup).kind).toBe("none");
  expect((await finished(worker, run("true"))).ended?.exitCode).toBe(0);
});
