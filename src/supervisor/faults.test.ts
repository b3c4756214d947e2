import { existsSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { rig, variants, type Variant } from "./testing.ts";
import { failing, noInjection, reason } from "./testing/faults.ts";
import { runs, soon } from "./testing/processes.ts";
import { bytesOf, readLog } from "./testing/records.ts";

const CUE = 'read x < "$CUE"';
const WRITES = "pwrite64,ftruncate";

describe.each(variants)("$mode, $build", (variant) => {
  describe.skipIf(noInjection)(`on a disk that fails${reason(noInjection)}`, () => {
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

test("jobs that a spawner has no descriptors to watch are not gone, and it hears of their ends once it has", async () => {
  const variant: Variant = { mode: "descent", build: "hardened" };
  await using it = await rig(variant);
  await using next = await rig(variant, { prelude: "ulimit -n 12" });
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
  await next.run({ script: "" }).catch(() => {}); // what comes after the adoptions is answered after them
  expect(told).toEqual([]);
  for (const job of jobs) job.stop("SIGKILL", 0);
  await Promise.all(jobs.map((job) => job.ended()));
  await soon(Promise.all(ends), "all have been told gone");
});
