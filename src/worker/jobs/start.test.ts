import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { needsRoot } from "../../testing/root.ts";
import { AHEAD } from "../cgroup/groups-ahead.ts";
import type { JobSpec } from "../model/job.ts";
import {
  finished,
  groupsIn,
  modes,
  openFiles,
  refused,
  run,
  someUids,
  testWorker,
  until,
  type TestWorker,
  sh,
} from "../testing/worker.ts";

const RUNS = 60;

/** What a start may ask for without being refused. */
const fine: fc.Arbitrary<Partial<JobSpec>> = fc.record(
  {
    args: fc.array(fc.stringMatching(/^[^\0]*$/), { maxLength: 3 }),
    env: fc.constantFrom(new Map([["A", "b"]]), new Map()),
    labels: fc.constantFrom(new Map([["team", "a"]]), new Map()),
    timeLimitMs: fc.integer({ min: 60_000, max: 1e9 }),
    mergeOutput: fc.boolean(),
    umask: fc.integer({ min: 0, max: 0o777 }),
    oomScoreAdj: fc.integer({ min: 0, max: 1000 }),
    rlimits: fc.constantFrom([{ name: "core", soft: 0 }], []),
    requestId: fc.constant("r"),
  },
  { requiredKeys: [] },
);

/** What makes a start refused: by the worker, by the host, by the supervisor, and by the kernel at the exec. */
const wrong: fc.Arbitrary<Partial<JobSpec>> = fc.oneof(
  fc.constantFrom<Partial<JobSpec>>(
    { command: "" },
    { command: "/no/such/program" },
    { command: "/etc/passwd" },
    { command: "true\0" },
    { cwd: "tmp" },
    { cwd: "/no/such/directory" },
    { env: new Map([["A=", "b"]]) },
    { labels: new Map([["a b", ""]]) },
    { user: "no-such-user" },
    { group: "no-such-group" },
    { userNamespaces: true },
    { log: { archive: true } },
    { log: { limitBytes: 1 } },
    { rlimits: [{ name: "core" }, { name: "core" }] },
    { resources: { unified: { "cgroup.kill": "1" } } },
    { resources: { devices: [{ allow: true, type: "x" }] } },
    { resources: { network: { classID: 1 } } },
  ),
  fc.record({ timeLimitMs: fc.integer({ max: 0 }) }),
  fc.record({ umask: fc.integer({ min: 0o1000 }) }),
  fc.record({ oomScoreAdj: fc.integer({ min: 1001 }) }),
  fc.record({ requestId: fc.constantFrom("", "a b", "x".repeat(129)) }),
  fc.bigInt({ max: -2n }).map((limit) => ({ resources: { memory: { limit } } })),
  fc.bigInt({ min: 2n ** 22n }).map((limit) => ({ resources: { pids: { limit } } })),
);

function groups({ cgroup }: TestWorker): number {
  return cgroup === undefined ? 0 : groupsIn(cgroup).length;
}

describe.each(modes)("a start %s", (_mode, options) => {
  test("that is refused for whatever reason leaves no cgroup, directory, record, request id or descriptor", async () => {
    await using worker = await testWorker({ ...options, maxJobs: 1 });
    await finished(worker, run("true"));
    const [ended = ""] = worker.list({ limit: 1 }).jobs.map(({ id }) => id);
    const before = openFiles();
    await fc.assert(
      fc.asyncProperty(fine, wrong, async (some, bad) => {
        await refused(() => worker.start({ ...run("true"), ...some, ...bad }));
        expect(worker.traces()).toEqual([`dir:${ended}`, `row:${ended}`]);
        expect(groups(worker)).toBeLessThanOrEqual(worker.cgroup === undefined ? 0 : AHEAD);
        await until("no descriptor is left", () => openFiles().join() === before.join());
      }),
      { numRuns: RUNS },
    );
    expect((await worker.start({ ...run("true"), requestId: "r" })).alreadyStarted).toBe(false);
  });
});

test("a start that is refused uses up no uid", needsRoot, async () => {
  const jobUids = someUids(10);
  await using worker = await testWorker({ jobUids });
  const { user } = await finished(worker, run("true"));
  for (const bad of [{ cwd: "tmp" }, { log: { archive: true } }, { resources: { pids: { limit: -2n } } }])
    await refused(() => worker.start({ ...run("true"), ...bad }));
  const following = Number(user) === jobUids.last ? jobUids.first : Number(user) + 1;
  expect((await finished(worker, run("true"))).user).toBe(String(following));
});

describe.each(modes)("a request id %s", (_mode, options) => {
  const spec = { ...sh("echo ready; exec sleep 1000"), requestId: "r1" };

  test("starts one job however often it is sent: in turn, at once, after the job's end, after a restart", async () => {
    await using worker = await testWorker(options);
    const { job, alreadyStarted } = await worker.start(spec);
    expect(alreadyStarted).toBe(false);
    expect(await worker.start({ ...spec, command: "another" })).toMatchObject({
      job: { id: job.id, state: "running", pid: job.pid },
      alreadyStarted: true,
    });
    const many = await Promise.all(Array.from({ length: 50 }, () => worker.start({ ...spec, requestId: "r2" })));
    expect(new Set(many.map((answer) => answer.job.id)).size).toBe(1);
    expect(many.filter((answer) => !answer.alreadyStarted)).toHaveLength(1);
    const { job: ended } = await worker.stop(job.id, { by: "tester" });
    expect(await worker.start(spec)).toEqual({ job: ended, alreadyStarted: true });
    expect(worker.list({ limit: 100 }).jobs).toHaveLength(2);
    await worker.close();
    await using again = await testWorker({ ...options, stateDir: worker.stateDir });
    expect(await again.start(spec)).toEqual({ job: ended, alreadyStarted: true });
  });

  test("belongs to its owner: another owner's start with the same id is another job", async () => {
    await using worker = await testWorker(options);
    const [mine, yours] = await Promise.all([worker.start(spec), worker.start({ ...spec, owner: "other" })]);
    expect(mine.job.id).not.toBe(yours.job.id);
    expect([mine, yours].map(({ alreadyStarted }) => alreadyStarted)).toEqual([false, false]);
  });

  test("of a failed start can be used again; everybody who sent it meanwhile gets the reason", async () => {
    await using worker = await testWorker(options);
    const bad = { ...spec, command: "/no/such/program" };
    const errors = await Promise.all(Array.from({ length: 10 }, () => refused(() => worker.start(bad))));
    expect(new Set(errors.map(({ message }) => message)).size).toBe(1);
    expect(worker.traces()).toEqual([]);
    expect((await worker.start(spec)).alreadyStarted).toBe(false);
  });
});
