import { readdirSync, readlinkSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { AHEAD } from "../cgroup/groups-ahead.ts";
import type { JobSpec } from "../model/job.ts";
import { finished, groupsIn, modes, refused, run, testWorker, until, type TestWorker } from "../testing/worker.ts";

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

/** The files that this process has open, but for those of supervisors that wait for a job. */
function descriptors(): string[] {
  const names = readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      return [readlinkSync(join("/proc/self/fd", fd))];
    } catch {
      return []; // the descriptor of this very listing
    }
  });
  return names.filter((name) => !name.includes("/.spares/")).toSorted();
}

function groups({ cgroup }: TestWorker): number {
  return cgroup === undefined ? 0 : groupsIn(cgroup).length;
}

describe.each(modes)("a start %s", (_mode, options) => {
  test("that is refused for whatever reason leaves no cgroup, directory, record, request id or descriptor", async () => {
    await using worker = await testWorker({ ...options, maxJobs: 1 });
    await finished(worker, run("true"));
    const [ended = ""] = worker.list({ limit: 1 }).jobs.map(({ id }) => id);
    const before = descriptors();
    await fc.assert(
      fc.asyncProperty(fine, wrong, async (some, bad) => {
        await refused(() => worker.start({ ...run("true"), ...some, ...bad }));
        expect(worker.traces()).toEqual([`dir:${ended}`, `row:${ended}`]);
        expect(groups(worker)).toBeLessThanOrEqual(worker.cgroup === undefined ? 0 : AHEAD);
        await until("no descriptor is left", () => descriptors().join() === before.join());
      }),
      { numRuns: RUNS },
    );
    expect((await worker.start({ ...run("true"), requestId: "r" })).alreadyStarted).toBe(false);
  });
});
