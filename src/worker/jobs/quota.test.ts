import { describe, expect, test } from "vitest";
import { modes, refused, run, testWorker, waits } from "../testing/worker.ts";
import type { JobSpec } from "../model/job.ts";
import { checkQuotas, type Quota, quotaOf } from "../model/quota.ts";
import { settingsOf } from "../limits/settings.ts";
import { thisHost } from "../limits/host.ts";
import type { Jobs } from "../worker.ts";
import { checkMost, sharedSettings, sumSettings, withDefaults } from "./quota.ts";

const MIB = 1024 ** 2;
const host = thisHost(undefined);
const spec: JobSpec = run("true");

/** The limits that a start has under a quota, as lines of the files of its group; or what it is refused with. */
function linesOf(quota: Quota, resources?: JobSpec["resources"]): Promise<unknown> {
  return Promise.resolve().then(() => {
    const filled = withDefaults({ ...spec, ...(resources && { resources }) }, quota);
    const settings = settingsOf(filled.resources ?? {}, host);
    checkMost(settings, "ada", quota, true);
    return Object.fromEntries(settings.map(({ file, value }) => [file, value]));
  });
}

describe("a start", () => {
  const quota: Quota = {
    default: { memoryBytes: 64 * MIB },
    max: { memoryBytes: 256 * MIB, cpus: 1.5, pids: 100 },
  };

  test("has the default of what it does not ask for, or else the most", async () => {
    expect(await linesOf(quota)).toEqual({
      "memory.max": String(64 * MIB),
      "memory.oom.group": "1",
      "cpu.max": "150000 100000",
      "pids.max": "100",
    });
    expect(await linesOf({})).toEqual({});
  });

  test("has what it asks for up to the most, by a field or by a file's name", async () => {
    const asked = { memory: { limit: BigInt(256 * MIB) }, cpu: { quota: 3000n, period: 2000n }, pids: { limit: 100n } };
    expect(await linesOf(quota, asked)).toMatchObject({
      "memory.max": String(256 * MIB),
      "cpu.max": "3000 2000",
      "pids.max": "100",
    });
    const unified = { "memory.max": String(MIB), "cpu.max": "1000 100000", "pids.max": "7" };
    expect(await linesOf(quota, { unified })).toEqual(unified);
    expect(await linesOf(quota, { cpu: { period: 20_000n } })).toMatchObject({ "cpu.max": "30000 20000" });
    expect(await linesOf(quota, { memory: { swap: BigInt(64 * MIB) } })).toMatchObject({ "memory.swap.max": "0" });
  });

  test.each<[string, JobSpec["resources"], string, string]>([
    ["memory", { memory: { limit: BigInt(256 * MIB) + 1n } }, "resources.memory.limit", String(256 * MIB + 1)],
    ["no limit of memory", { memory: { limit: -1n } }, "resources.memory.limit", "no limit"],
    ["CPUs", { cpu: { quota: 151_000n } }, "resources.cpu.quota", "1.51"],
    ["no limit of CPUs", { cpu: { quota: -1n } }, "resources.cpu.quota", "no limit"],
    ["processes", { pids: { limit: 101n } }, "resources.pids.limit", "101"],
    ["memory by its file", { unified: { "memory.max": "999999999" } }, 'resources.unified["memory.max"]', "999999999"],
    [
      "memory by its file, twice",
      { unified: { "memory.max": "max\n1" } },
      'resources.unified["memory.max"]',
      "no limit",
    ],
    ["CPUs by their file", { unified: { "cpu.max": "max 100000" } }, 'resources.unified["cpu.max"]', "no limit"],
  ])("is refused for more %s, with the number", async (_, resources, field, asked) => {
    const error = await refused(() => linesOf(quota, resources));
    expect(error).toMatchObject({ code: "invalid", field, facts: { field, asked } });
    expect(error.facts["maximum"]).toMatch(/^(268435456|1\.5|100)$/);
    expect(error.message).toContain(`${asked} is too much: ${error.facts["maximum"]} is the most`);
  });

  test.each(["1G", "0x10", " max", "4096k", "100000", "max"])(
    "is refused for the value %j of a file, which only the kernel could compare",
    async (value) => {
      const file = /^\d+$|^max$/.test(value) ? "cpu.max" : "memory.max";
      const error = await refused(() => linesOf(quota, { unified: { [file]: value } }));
      expect(error).toMatchObject({ code: "invalid", field: `resources.unified["${file}"]` });
    },
  );

  test("may not ask for more than all jobs of its owner may have, and without a limit ends as a whole", async () => {
    const shared: Quota = { sum: { memoryBytes: 64 * MIB, cpus: 0.5, pids: 10 } };
    expect(await linesOf(shared)).toEqual({});
    expect(await linesOf(shared, { memory: { limit: -1n } })).toEqual({ "memory.max": "max" });
    expect(await refused(() => linesOf(shared, { pids: { limit: 11n } }))).toMatchObject({ facts: { maximum: "10" } });
    expect(sharedSettings(shared)).toMatchObject([{ file: "memory.oom.group", value: "1" }]);
    expect(sumSettings(shared).map(({ file, value }) => `${file} ${value}`)).toEqual([
      `memory.max ${64 * MIB}`,
      "cpu.max 50000 100000",
      "pids.max 10",
    ]);
  });
});

test("an owner's own quota takes the place of the common one key by key, and a default above a most is refused", () => {
  const all: Quota = { default: { cpus: 1 }, max: { cpus: 2, pids: 10 }, jobs: 3 };
  const owners = new Map<string, Quota>([["ada", { max: { cpus: 4 }, sum: { memoryBytes: MIB } }]]);
  expect(quotaOf({ all, owners }, "ada")).toEqual({
    default: { cpus: 1 },
    max: { cpus: 4, pids: 10 },
    sum: { memoryBytes: MIB },
    jobs: 3,
  });
  expect(quotaOf({ all, owners }, "bob")).toEqual(all);
  expect(quotaOf(undefined, "bob")).toBeUndefined();
  checkQuotas({ all, owners });
  expect(() => checkQuotas({ all, owners: new Map([["bob", { max: { cpus: 0.5 } }]]) })).toThrow(
    'quota: of "bob": default-cpus',
  );
  expect(() => checkQuotas({ all: { default: { logLimitBytes: 0 }, max: { logLimitBytes: 1 } } })).toThrow("log-limit");
  expect(() => checkQuotas({ all: { default: { pids: 3 }, sum: { pids: 2 } } })).toThrow("default-pids 3");
});

describe.each(modes)("a worker %s", (_mode, options) => {
  test("counts an owner's jobs that have not ended, and refuses one more until one has", async () => {
    const quotas = { all: { jobs: 2 }, owners: new Map([["bob", { jobs: 1 }]]) };
    await using worker = await testWorker({ ...options, quotas });
    const start = (owner: string) => worker.start({ ...waits, owner });
    const [first] = [await start("ada"), await start("ada"), await start("bob")];
    for (const [owner, most] of [
      ["ada", "2"],
      ["bob", "1"],
    ] as const)
      expect(await refused(() => start(owner))).toMatchObject({
        code: "exhausted",
        message: expect.stringContaining(`"${owner}" has ${most} jobs that have not ended`),
        facts: { field: "jobs", maximum: most },
      });
    await worker.stop(first?.job.id ?? "", { by: "tester", graceMs: 0 });
    await start("ada");
    const { stateDir } = worker;
    await worker.close();
    await using again = await testWorker({ ...options, stateDir, quotas });
    expect(await refused(() => again.start({ ...waits, owner: "ada" }))).toMatchObject({ code: "exhausted" });
  });

  test("gives a start the time and the log of its owner's quota, and no more", async () => {
    const quotas = {
      all: { default: { timeLimitMs: 60_000, logLimitBytes: 2 * MIB }, max: { timeLimitMs: 90_000 } },
      owners: new Map([["ada", { max: { logLimitBytes: 4 * MIB, timeLimitMs: 120_000 } }]]),
    };
    await using worker = await testWorker({ ...options, quotas, logLimitBytes: 3 * MIB });
    const { job } = await worker.start({ ...run("true"), owner: "ada" });
    expect(job).toMatchObject({ timeLimitMs: 60_000, logPolicy: { limitBytes: 2 * MIB } });
    const asked = { timeLimitMs: 120_000, log: { limitBytes: 4 * MIB } };
    expect((await worker.start({ ...run("true"), owner: "ada", ...asked })).job).toMatchObject({
      timeLimitMs: 120_000,
      logPolicy: { limitBytes: 4 * MIB },
    });
    expect(await refused(() => worker.start({ ...run("true"), timeLimitMs: 90_001 }))).toMatchObject({
      code: "invalid",
      field: "time_limit",
      facts: { asked: "90.001s", maximum: "90s" },
    });
    for (const [owner, limitBytes, maximum] of [
      ["ada", 5 * MIB, 4 * MIB],
      ["ada", 0, 4 * MIB],
      ["bob", 4 * MIB, 3 * MIB],
    ] as const)
      expect(await refused(() => worker.start({ ...run("true"), owner, log: { limitBytes } }))).toMatchObject({
        field: "log.limit",
        facts: { maximum: String(maximum) },
      });
  });

  test("tells an owner its own quota alone, and who sees all jobs that of all", async () => {
    const quotas = { all: { jobs: 2 }, owners: new Map([["bob", { jobs: 5, max: { timeLimitMs: 3_600_000 } }]]) };
    await using worker = await testWorker({ ...options, quotas });
    const rows = async ({ examine }: Pick<Jobs, "examine">) =>
      (await examine()).filter(({ area }) => area === "owner").map(({ name, meaning }) => `${name}: ${meaning}`);
    expect(await rows(worker.of("ada"))).toEqual(["ada: 2 jobs at once"]);
    expect(await rows(worker.of("bob"))).toEqual(["bob: time: 3600 s at most; 5 jobs at once"]);
    expect(await rows(worker)).toEqual(["each: 2 jobs at once", "bob: time: 3600 s at most; 5 jobs at once"]);
  });

  test("refuses every start whose quota this host cannot keep", async () => {
    const needs = [
      ["memory", { sum: { memoryBytes: 64 * MIB } }, "quota of memory"],
      ["cpu", { sum: { cpus: 1 } }, "quota of cpu"],
      ["pids", { max: { pids: 10 } }, "quota of pids"],
    ] as const;
    for (const [controller, all, field] of needs) {
      await using worker = await testWorker({ ...options, quotas: { all } });
      if (worker.host.includes(controller)) expect((await worker.start(run("true"))).job.owner).toBe("tester");
      else
        expect(await refused(() => worker.start(run("true")))).toMatchObject({
          code: "unsupported",
          field,
          facts: { controller },
        });
    }
  });

  test.each(["max", "sum"] as const)(
    "refuses an update above the most (%s), also of a job that was started before there was one",
    async (kind) => {
      await using first = await testWorker(options);
      const { job } = await first.start(waits);
      await first.close();
      await using worker = await testWorker({
        ...options,
        stateDir: first.stateDir,
        quotas: { all: { [kind]: { pids: 10 } } },
      });
      for (const limit of [11n, -1n])
        expect(await refused(() => worker.update(job.id, { pids: { limit } }))).toMatchObject({
          code: "invalid",
          field: "resources.pids.limit",
          facts: { maximum: "10", asked: limit === 11n ? "11" : "no limit" },
        });
      expect(worker.query(job.id)).toMatchObject({ state: "running", limits: new Map() });
    },
  );
});
