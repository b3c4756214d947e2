import { existsSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { SPARE } from "../worker/supervisor/spare.ts";
import { rig, variants, type Variant } from "./testing/rig.ts";
import { unless } from "../testing/root.ts";
import { failing, noInjection } from "../testing/strace.ts";
import { childrenOf, marked, runs, soon, until } from "../testing/processes.ts";
import { bytesOf, readLog } from "./testing/records.ts";

const CUE = 'read x < "$CUE"';
const WRITES = "pwrite64,ftruncate";

describe.each(variants)("$mode, $build", (variant) => {
  describe("on a disk that fails", unless(noInjection), () => {
    test.each([
      ["EIO", WRITES],
      ["EDQUOT", WRITES],
      ["EROFS", `${WRITES},renameat`],
      ["EIO", "renameat"],
    ])(
      "an exit record that meets %s of %s is written once it can be, and its supervisor lives until then",
      async (errno, calls) => {
        await using it = await rig(variant);
        const job = await it.start({ script: `echo before; ${CUE}; exit 7` });
        await job.wrote("before");
        {
          await using fault = await failing(job.supervisor, calls, errno);
          it.cue();
          await fault.met(3);
          expect(runs(job.supervisor)).toBe(true);
          expect(existsSync(join(job.directory, "exit"))).toBe(false);
        }
        expect(await job.ended()).toMatchObject({ version: 1, cause: "none", code: 7, size: 7, dropped: 0 });
      },
    );

    test.each(["EIO", "EDQUOT", "ENOSPC", "EROFS"])(
      "output that meets %s is a gap, also where the log could not say so then, and the log goes on after it",
      async (errno) => {
        await using it = await rig(variant);
        const job = await it.start({ script: `echo one; ${CUE}; echo lost; ${CUE}; echo two` });
        await job.wrote("one");
        {
          await using fault = await failing(job.supervisor, WRITES, errno);
          it.cue();
          await fault.met(2); // the record, or the bytes, and the header
          expect(runs(job.pid)).toBe(true);
        }
        it.cue();
        const exit = await job.ended();
        const log = readLog(job.directory);
        expect(exit).toMatchObject({ code: 0, size: 13, dropped: 5 });
        expect(log).toMatchObject({ dropped: 5 });
        expect(bytesOf(log, "stdout").toString()).toBe("one\ntwo\n");
        expect(log.pieces.map(({ source, offset }) => [source, offset])).toContainEqual(["gap", 4]);
      },
    );

    test("a log that ends in a gap says so once it can, before there is an exit record", async () => {
      await using it = await rig(variant);
      const job = await it.start({ script: `echo one; ${CUE}; echo lost` });
      await job.wrote("one");
      {
        await using fault = await failing(job.supervisor, WRITES, "EIO");
        it.cue();
        await fault.met(4);
        expect(readLog(job.directory)).toMatchObject({ dropped: 0, gapEnd: 0 });
      }
      expect(await job.ended()).toMatchObject({ size: 9, dropped: 5 });
      expect(readLog(job.directory)).toMatchObject({ dropped: 5, gapEnd: 9 });
    });

    test("nothing is let go of a log whose header cannot say so", async () => {
      await using it = await rig(variant);
      const job = await it.start({ script: `seq 1000; ${CUE}; seq 20000; ${CUE}`, logLimitBytes: 16 * 1024 });
      await job.wrote("1000\n");
      {
        await using fault = await failing(job.supervisor, "pwrite64", "EIO");
        it.cue();
        await fault.met(2);
        const { first, bytes } = readLog(job.directory);
        expect(first).toBe(0);
        expect(bytes.includes(0)).toBe(false);
      }
      it.cue();
      const exit = await job.ended();
      const log = readLog(job.directory);
      expect(Number(exit["size"]) - Number(exit["dropped"])).toBe(bytesOf(log, "stdout").length);
    });
  });
});

const plain: Variant = { mode: "descent", build: "hardened" };

test("jobs that a spawner has no descriptors to watch are not gone, and it hears of their ends once it has", async () => {
  await using it = await rig(plain);
  await using next = await rig(plain, { prelude: "ulimit -n 12" });
  const jobs = await Promise.all(Array.from({ length: 12 }, () => it.start({ script: 'read x < "$CUE"; exit 3' })));
  const told: string[] = [];
  const ends = jobs.map(
    ({ directory }) =>
      new Promise<void>((resolve) =>
        next.spawner.adopt(directory, () => {
          told.push(directory);
          resolve();
        }),
      ),
  );
  // What comes after the adoptions is answered after them.
  await expect(next.run({ script: "" })).rejects.toMatchObject({ code: "exhausted" });
  expect(told).toEqual([]);
  for (const job of jobs) job.stop("SIGKILL", 0);
  await Promise.all(jobs.map((job) => job.ended()));
  await soon(Promise.all(ends), "all have been told gone");
});

test(
  "an exit record that cannot be written for 30 s is given up, and its supervisor ends with the errno",
  unless(noInjection),
  async () => {
    await using it = await rig(plain);
    const launch = it.launchOf({ script: `echo before; ${CUE}; exit 7` });
    const why = Promise.withResolvers<readonly [number, string]>();
    await it.spawner.launch(
      launch,
      () => {},
      (...told) => why.resolve(told),
    );
    await using _fault = await failing(readLog(launch.directory).supervisor, "renameat", "EROFS");
    const began = performance.now();
    it.cue();
    expect(await why.promise).toEqual([0, "EROFS"]);
    expect(performance.now() - began).toBeGreaterThan(29_000);
  },
);

describe("where a job's files cannot be had", unless(noInjection), () => {
  test.each(["ENOSPC", "EDQUOT", "EIO", "EROFS"])(
    "for %s, starts go on while there are spares, and are then refused as exhausted, with the stage",
    async (errno) => {
      await using it = await rig(plain);
      for (const [call, stage] of [
        ["mkdir", "directory"],
        ["mknodat", "directory"],
        ["fallocate", "directory"],
        ["pwrite64", "output"],
      ] as const) {
        expect((await it.run({ script: "exit 3" })).exit).toMatchObject({ code: 3 });
        await until(() => childrenOf(it.pid()).length >= 2, "spares are there");
        const met: unknown[] = [];
        {
          await using _fault = await failing(it.pid(), call, errno);
          while (met.length < 10 && (met.at(-1) ?? 0) === 0)
            met.push(
              await it.run({ script: "" }).then(
                ({ exit }) => exit["code"],
                (error: unknown) => error,
              ),
            );
        }
        expect(met[0]).toBe(0);
        expect(met.at(-1)).toMatchObject({ code: "exhausted", facts: { stage, errno } });
        await until(() => readdirSync(it.jobs).every((name) => !name.startsWith(SPARE)), "nothing of spares is left");
      }
    },
  );

  test.each(["EDQUOT", "EIO", "EROFS"])(
    "for %s of the header, which tells that a job runs, it is killed, and its start refused",
    async (errno) => {
      await using it = await rig(plain);
      await it.run({ script: "" });
      await using faults = new AsyncDisposableStack();
      for (const spare of childrenOf(it.pid())) faults.use(await failing(spare, "pwrite64", errno));
      const launch = it.launchOf({ argv: ["/bin/sleep", "1000"], env: { MARK: `${it.directory}/mark` } });
      const started = it.spawner.launch(
        launch,
        () => {},
        () => {},
      );
      await expect(started).rejects.toMatchObject({ code: "exhausted", facts: { stage: "output", errno } });
      await until(() => readdirSync(launch.directory).length === 0, "its files are gone"); // the rest is the daemon's
      expect(marked(`${it.directory}/mark`)).toEqual([]);
    },
  );
});

test("a spawner that ends at once is started again after pauses that grow, told once, and hears of what runs when it stays", async () => {
  await using it = await rig(plain, { prelude: '[ ! -e "$0.broken" ] || { echo >> "$0.broken"; exit 1; }' });
  const job = await it.start({ script: `${CUE}; exit 3` });
  const broken = join(it.directory, "spawner.broken");
  writeFileSync(broken, "");
  const before = performance.now();
  process.kill(it.pid(), "SIGKILL");
  await until(() => readFileSync(broken).length >= 4, "it has been tried four times");
  expect(performance.now() - before).toBeGreaterThan(1400); // 100 + 200 + 400 + 800
  await expect(it.run({ script: "" })).rejects.toThrow("the spawner ended (1)");
  expect(it.logged).toEqual(["the spawner ended (SIGKILL)"]);
  rmSync(broken);
  it.cue();
  expect(await job.ended()).toMatchObject({ code: 3 });
});

test("a spawner whose binary is away for a while is had once it is back", async () => {
  await using it = await rig(plain);
  const job = await it.start({ script: `${CUE}; exit 3` });
  const path = join(it.directory, "spawner");
  renameSync(path, `${path}.away`);
  process.kill(it.pid(), "SIGKILL");
  await until(() => it.logged.length > 0, "it is told");
  await expect(it.run({ script: "" })).rejects.toMatchObject({ code: "internal", message: /cannot be run.*ENOENT/ });
  renameSync(`${path}.away`, path);
  it.cue();
  expect(await job.ended()).toMatchObject({ code: 3 });
  expect(it.logged).toEqual(["the spawner ended (SIGKILL)"]);
});

test.each([
  ["socketpair", "EMFILE"],
  ["clone", "EAGAIN"],
  ["clone", "ENOMEM"],
])(
  "without a spawner, whose %s meets %s, starts are refused as exhausted for good, and jobs are told of once there is one",
  unless(noInjection),
  async (call, errno) => {
    await using it = await rig(plain);
    const job = await it.start({ script: `${CUE}; exit 3` });
    const recorded: string[] = [];
    const start = (what: string): Promise<number> =>
      it.spawner.launch(
        it.launchOf({ script: "" }),
        () => void recorded.push(what),
        () => {},
      );
    {
      await using fault = await failing(process.pid, call, errno);
      process.kill(it.pid(), "SIGKILL");
      await fault.met(2); // the second by itself
      await expect(start("refused")).rejects.toMatchObject({ code: "exhausted", message: new RegExp(errno) });
    }
    await start("later");
    expect(recorded).toEqual(["later"]);
    it.cue();
    expect(await job.ended()).toMatchObject({ code: 3 });
  },
);

test("a long start that is given up while it is written, since the spawner died, is never recorded nor run", async () => {
  await using it = await rig(plain);
  await it.run({ script: "" });
  const spawner = it.pid();
  await until(() => childrenOf(spawner).length >= 2, "spares are there");
  const spares = childrenOf(spawner);
  for (const pid of [spawner, ...spares]) process.kill(pid, "SIGSTOP"); // or it would have them go on
  const ran = join(it.directory, "ran");
  let recorded = false;
  const started = it.spawner.launch(
    it.launchOf({ argv: ["/usr/bin/touch", ran], env: { LONG: "x".repeat(100_000) } }),
    () => (recorded = true),
    () => {},
  );
  process.kill(spawner, "SIGKILL");
  await expect(started).rejects.toMatchObject({ code: "internal", message: "the spawner ended (SIGKILL)" });
  for (const pid of spares) process.kill(pid, "SIGCONT");
  await until(() => !spares.some(runs), "the spares have ended");
  await it.run({ script: "" });
  expect(recorded).toBe(false);
  expect(existsSync(ran)).toBe(false);
});
