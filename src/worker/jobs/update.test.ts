import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { openHierarchy } from "../cgroup/hierarchy.ts";
import type { LinuxResources } from "../model/resources.ts";
import {
  finished,
  modes,
  refused,
  rmGroup,
  run,
  sh,
  startReady,
  testWorker,
  type TestWorker,
  until,
  waits,
} from "../testing/worker.ts";

const MIB = 1024n ** 2n;

function pages(limit: bigint): LinuxResources {
  return { hugepageLimits: [{ pageSize: "2MB", limit }] };
}

function inKernel(worker: TestWorker, id: string, file: string): string {
  return readFileSync(join(worker.cgroup ?? "", id, file), "utf8").trim();
}

describe.each(modes)("an update %s", (_mode, options) => {
  test("is refused for a job that does not exist or has ended, and when it names nothing", async () => {
    await using worker = await testWorker(options);
    expect(await refused(() => worker.update("nobody", pages(0n)))).toMatchObject({ code: "not-found" });
    const { id } = await finished(worker, run("true"));
    const late = await refused(() => worker.update(id, pages(0n)));
    expect(late).toMatchObject({ code: "precondition", message: `job ${id} has ended, and has no limits to change` });
    const { job } = await worker.start(waits);
    for (const nothing of [{}, { cpu: {}, devices: [] }])
      expect(await refused(() => worker.update(job.id, nothing))).toMatchObject({
        code: "invalid",
        field: "resources",
      });
    expect(worker.query(job.id).resources).toBeUndefined();
  });

  test("is refused, naming the field, as a start would be", async () => {
    await using worker = await testWorker(options);
    const { job } = await worker.start(waits);
    const cases: [LinuxResources, string, string][] = [
      [{ pids: { limit: -2n } }, "invalid", "resources.pids.limit"],
      [{ memory: { kernel: 1n } }, "unsupported", "resources.memory.kernel"],
      [{ devices: [{ allow: false, type: "x" }] }, "invalid", "resources.devices[0].type"],
      [{ unified: { "cgroup.freeze": "1" } }, "invalid", 'resources.unified["cgroup.freeze"]'],
    ];
    for (const [resources, code, field] of cases)
      expect(await refused(() => worker.update(job.id, resources))).toMatchObject({ code, field });
    expect(worker.query(job.id).resources).toBeUndefined();
  });
});

test("an update of device rules replaces those that the job had, or is refused and changes nothing", async () => {
  const [, options] = modes.find(([mode]) => mode === "with cgroup v2") ?? [];
  await using worker = await testWorker(options);
  const script = "while :; do (: < /dev/zero) 2> /dev/null && echo open || echo denied; sleep 0.01; done";
  const { job } = await worker.start(sh(script));
  const says = (word: string): Promise<boolean> =>
    until(`it is ${word}`, () => readFileSync(join(worker.directory(job.id), "output"), "utf8").endsWith(`${word}\n`));
  await says("open");
  const devices = [{ allow: true }, { allow: false, type: "c", major: 1n, minor: 5n }];
  try {
    expect((await worker.update(job.id, { devices })).resources).toEqual({ devices });
  } catch (error) {
    expect(error).toMatchObject({ code: "unsupported", field: "resources.devices" });
    expect(worker.query(job.id).resources).toBeUndefined();
    return;
  }
  await says("denied");
  await worker.update(job.id, { devices: [{ allow: true }] });
  await says("open");
});

test("an update without cgroup is refused, naming the field", async () => {
  await using worker = await testWorker(modes[0]?.[1]);
  const { job } = await worker.start(waits);
  const error = await refused(() => worker.update(job.id, { pids: { limit: 5n } }));
  expect(error).toMatchObject({ code: "unsupported", field: "resources.pids.limit" });
});

// hugetlb is the one controller that hosts with cgroup v1 leave to v2; e2e/update.test.ts tries the others.
const host = openHierarchy(`jobs-test-${crypto.randomUUID().slice(0, 8)}`);
if (host.kind === "cgroup2") rmGroup(host.path);
const hugetlb =
  host.kind === "cgroup2" && host.controllers.has("hugetlb") && existsSync("/sys/kernel/mm/hugepages/hugepages-2048kB");
if (hugetlb) {
  describe("an update of a limit on huge pages", () => {
    test("reaches the kernel at once, is in the record, and survives a restart; limits that it does not name stay", async () => {
      await using worker = await testWorker();
      const resources = { ...pages(4n * MIB), unified: { "hugetlb.2MB.rsvd.max": String(6n * MIB) } };
      const { job } = await worker.start({ ...waits, resources });
      const updated = await worker.update(job.id, pages(8n * MIB));
      const limits = new Map([
        ["hugetlb.2MB.max", String(8n * MIB)],
        ["hugetlb.2MB.rsvd.max", String(6n * MIB)],
      ]);
      expect(updated.limits).toEqual(limits);
      for (const [file, value] of limits) expect(inKernel(worker, job.id, file)).toBe(value);
      const told = { limits, resources: { ...pages(8n * MIB), unified: resources.unified } };
      expect(worker.query(job.id)).toMatchObject(told);
      await worker.close();
      await using again = await testWorker({ stateDir: worker.stateDir });
      expect(again.query(job.id)).toMatchObject(told);
      const ended = await again.stop(job.id, { by: "tester", graceMs: 0 });
      expect(ended.job).toMatchObject(told);
    });

    test("of a job that had no limits is found again after a restart", async () => {
      await using worker = await testWorker();
      const { job } = await worker.start(waits);
      const { limits } = await worker.update(job.id, pages(2n * MIB));
      expect(limits.get("hugetlb.2MB.max")).toBe(String(2n * MIB));
      await worker.close();
      await using again = await testWorker({ stateDir: worker.stateDir });
      expect(again.query(job.id)).toMatchObject({ limits, resources: pages(2n * MIB) });
    });

    test.each([
      ["hugetlb.2MB.rsvd.max", "lots", "EINVAL"],
      ["hugetlb.2MB.nonsense", "1", "ENOENT"],
    ])("that the kernel refuses in %s undoes what was written before", async (file, value, errno) => {
      await using worker = await testWorker();
      const { job } = await worker.start({ ...waits, resources: pages(4n * MIB) });
      const error = await refused(() => worker.update(job.id, { ...pages(8n * MIB), unified: { [file]: value } }));
      expect(error).toMatchObject({
        code: "unsupported",
        field: `resources.unified["${file}"]`,
        facts: { stage: "cgroup", file, value, errno },
      });
      for (const each of ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"])
        expect(inKernel(worker, job.id, each)).toBe(String(4n * MIB));
      expect(worker.query(job.id)).toMatchObject({ resources: pages(4n * MIB), limits: job.limits });
    });

    test("waits for the update before it, and answers with its own limits, 50 at once", async () => {
      await using worker = await testWorker();
      const { id } = await startReady(worker, waits);
      const limits = Array.from({ length: 50 }, (_, i) => BigInt(i) * 2n * MIB);
      const refusals = limits.map((limit) =>
        refused(() => worker.update(id, { ...pages(limit + 2n * MIB), unified: { "hugetlb.2MB.nonsense": "1" } })),
      );
      const jobs = await Promise.all(limits.map((limit) => worker.update(id, pages(limit))));
      expect(jobs.map((job) => job.limits.get("hugetlb.2MB.max"))).toEqual(limits.map(String));
      await Promise.all(refusals);
      expect(inKernel(worker, id, "hugetlb.2MB.max")).toBe(String(limits.at(-1)));
    });

    test("at the moment of the job's end is made, or refused because of the end", async () => {
      await using worker = await testWorker();
      for (let i = 0; i < 20; i++) {
        const { job } = await worker.start(run("true"));
        const answer = await worker.update(job.id, pages(2n * MIB)).catch((error: unknown) => error);
        if (answer instanceof Error) expect(answer).toMatchObject({ code: "precondition" });
        else expect(answer).toMatchObject({ id: job.id, resources: pages(2n * MIB) });
        expect(await worker.wait(job.id)).toMatchObject({ state: "ended", ended: { how: { kind: "exited" } } });
      }
    });
  });
}
