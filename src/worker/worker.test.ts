import { describe, expect, test } from "vitest";
import {
  childrenOf,
  openFiles,
  finished,
  modes,
  refused,
  run,
  runs,
  sh,
  startReady,
  testWorker,
  until,
  waits,
} from "./testing/worker.ts";

const by = "tester";

describe("a worker", () => {
  test("runs at most as many jobs as it may; a refused start does not count, and an end makes room", async () => {
    await using worker = await testWorker({ maxJobs: 3 });
    for (let i = 0; i < 5; i++) await refused(() => worker.start(run("/no/such/program")));
    const started = await Promise.allSettled(Array.from({ length: 10 }, () => worker.start(waits)));
    const jobs = started.flatMap((result) => (result.status === "fulfilled" ? [result.value.job] : []));
    expect(jobs).toHaveLength(3);
    for (const result of started)
      if (result.status === "rejected") expect(result.reason).toMatchObject({ code: "exhausted" });
    expect((await refused(() => worker.start(waits))).message).toContain("--max-jobs");
    expect(worker.list({ limit: 100 }).jobs).toHaveLength(3);
    await worker.stop(jobs[0]?.id ?? "", { by });
    await worker.start(run("true"));
  });

  test("without cgroup says so in the line about its host and in its jobs' warnings; with cgroup it has no warning", async () => {
    for (const [mode, options] of modes) {
      await using worker = await testWorker(options);
      const { warnings } = await finished(worker, run("true"));
      if (mode === "without cgroup") {
        expect(worker.host).toMatch(/no usable cgroup v2.*no limits.*\(cgroup v2 is not mounted at \/tmp\)/);
        expect(warnings).toEqual([expect.stringContaining("no usable cgroup v2")]);
      } else {
        expect(worker.host).toMatch(/^cgroup v2 at \/.+, controllers: /);
        expect(warnings).toEqual([]);
      }
    }
  });

  test("puts its name in front of its jobs' ids, which sort by time", async () => {
    await using worker = await testWorker({ name: "w-1" });
    const ids: string[] = [];
    for (let i = 0; i < 3; i++) {
      ids.push((await finished(worker, run("true"))).id);
      const now = Date.now();
      await until("the clock has moved on", () => Date.now() > now);
    }
    for (const id of ids) expect(id).toMatch(/^w-1\.[0-9a-hjkmnp-tv-z]{26}$/);
    expect(ids.toSorted()).toEqual(ids);
    for (const name of ["", "W", "a.b", "-a", "../x", "x".repeat(33)])
      expect(await refused(() => testWorker({ name }))).toMatchObject({ code: "invalid", field: "name" });
  });

  test("does not open without its supervisor, nor with a state directory that cannot be made", async () => {
    const error = await refused(() => testWorker({ supervisor: "/no/such/supervisor" }));
    expect(error).toMatchObject({ code: "unavailable" });
    expect(error.message).toContain("/no/such/supervisor");
    for (const stateDir of ["/etc/passwd", "/etc/passwd/jobs"])
      expect(await refused(() => testWorker({ stateDir }))).toMatchObject({ code: "unavailable" });
  });

  test("that closes finishes the starts under way, refuses new ones, and ends its waits", async () => {
    await using worker = await testWorker();
    const { id } = await startReady(worker, waits);
    const waiting = refused(() => worker.wait(id));
    const starts = [worker.start(waits), worker.start({ ...waits, requestId: "r" })];
    const failing = refused(() => worker.start(run("/no/such/program")));
    const closing = worker.close();
    expect(await refused(() => worker.start(waits))).toMatchObject({ code: "unavailable" });
    const ids = (await Promise.all(starts)).map(({ job }) => job.id);
    expect(await failing).toMatchObject({ code: "invalid", field: "command" });
    await closing;
    expect(await waiting).toMatchObject({ code: "unavailable" });
    await using next = await testWorker({ stateDir: worker.stateDir });
    const found = next.list({ limit: 10 }).jobs;
    expect(new Map(found.map((job) => [job.id, job.state]))).toEqual(
      new Map([id, ...ids].map((each) => [each, "running"])),
    );
  });

  test("has no zombie, descriptor or process left after 50 jobs", async () => {
    await using worker = await testWorker();
    await finished(worker, run("true"));
    const before = openFiles();
    await Promise.all(Array.from({ length: 50 }, () => finished(worker, sh("sleep 0 & exit 0"))));
    await until("no descriptor is left", () => openFiles().join() === before.join());
    await until("no child of a child of this process is left", () =>
      descendants(process.pid).every((pid) => runs(pid) && !childrenOf(pid).some((child) => !runs(child))),
    );
    expect(worker.traces().filter((trace) => trace.startsWith("cgroup:"))).toEqual([]);
  });
});

function descendants(pid: number): number[] {
  return childrenOf(pid).flatMap((child) => [child].concat(descendants(child)));
}
