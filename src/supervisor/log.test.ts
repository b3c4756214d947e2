import { execFileSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { mkdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { needsRoot } from "../testing/root.ts";
import { compile, rig, variants, type Job, type Rig } from "./testing/rig.ts";
import { until } from "../testing/processes.ts";
import { bytesOf, readLog, type Exit } from "./testing/records.ts";

const KiB = 1024;
const PUMP_BYTES = 64 * KiB; // what the supervisor takes at a time
const NUMBERS = 300_000;
const numbers = Buffer.from(Array.from({ length: NUMBERS }, (_, i) => `${i + 1}\n`).join(""));

function onDisk(directory: string, ...names: string[]): number {
  return names.reduce((sum, name) => sum + statSync(join(directory, name)).blocks * 512, 0);
}

/** What a reader knows from the log must be what the exit record says. */
function expectAgreement(directory: string, exit: Exit): ReturnType<typeof readLog> {
  const log = readLog(directory);
  expect(exit).toMatchObject({ first: log.first, dropped: log.dropped, size: Math.max(log.bytes.length, log.gapEnd) });
  const offsets = log.pieces.map(({ offset }) => offset);
  expect(offsets).toEqual(offsets.toSorted((a, b) => a - b));
  expect(Number(exit["size"]) - log.dropped).toBe(bytesOf(log, "stdout").length + bytesOf(log, "stderr").length);
  return log;
}

/** Has a job write more than there is room for, and go on once there is. `narrow` leaves little room, and `free` gives it. */
async function fillAndRecover(it: Rig, free: (job: Job) => void, narrow: (job: Job) => void = () => {}): Promise<void> {
  const cue = 'read x < "$CUE"';
  const job = await it.start({ script: `${cue}; seq ${NUMBERS}; echo full >&2; ${cue}; echo recovered; exit 5` });
  narrow(job);
  it.cue();
  await until(() => readLog(job.directory).gapEnd >= numbers.length + 5, "the job has written all, in vain");
  free(job);
  it.cue();
  const exit = await job.ended();
  const log = expectAgreement(job.directory, exit);
  const kept = log.pieces.find(({ source }) => source === "gap")?.offset ?? 0;
  expect(exit).toMatchObject({ cause: "none", code: 5, first: 0, size: numbers.length + 15 });
  expect(kept).toBeGreaterThan(0);
  expect(log.bytes.subarray(0, kept).equals(numbers.subarray(0, kept))).toBe(true);
  expect(log.bytes.subarray(-10).toString()).toBe("recovered\n");
  expect(log.pieces.at(-1)).toMatchObject({ source: "stdout", offset: numbers.length + 5 });
}

describe.each(variants)("$mode, $build", (variant) => {
  test("bytes, offsets, sources and times are recorded in order of arrival", async () => {
    await using it = await rig(variant);
    const before = Date.now();
    const cue = 'read x < "$CUE"';
    const job = await it.start({ script: `echo one; ${cue}; echo two >&2; ${cue}; echo three; ${cue}; echo four` });
    for (const written of ["one", "two", "three"]) {
      await job.wrote(written);
      it.cue();
    }
    const log = expectAgreement(job.directory, await job.ended());
    expect(log.bytes.toString()).toBe("one\ntwo\nthree\nfour\n");
    expect(log).toMatchObject({ magic: "jobslog1", first: 0, dropped: 0, main: job.pid, supervisor: job.supervisor });
    expect(bytesOf(log, "stdout").toString()).toBe("one\nthree\nfour\n");
    expect(bytesOf(log, "stderr").toString()).toBe("two\n");
    expect(log.pieces.slice(0, 3).map(({ source, offset }) => [source, offset])).toEqual([
      ["stdout", 0],
      ["stderr", 4],
      ["stdout", 8],
    ]);
    const times = log.pieces.map(({ timeMs }) => timeMs);
    expect(times).toEqual(times.toSorted((a, b) => a - b));
    expect(times[0]).toBeGreaterThanOrEqual(before - 1);
    expect(times.at(-1)).toBeLessThanOrEqual(Date.now() + 1);
    expect(Number(log.startedNs / 1_000_000n)).toBeGreaterThanOrEqual(before - 1);
  });

  test("stderr that is merged into stdout is in the exact order of all that was written", async () => {
    await using it = await rig(variant);
    const script = "i=0; while [ $i -lt 500 ]; do echo $i; i=$((i+1)); echo $i >&2; i=$((i+1)); done";
    const { job, exit } = await it.run({ script, mergeOutput: true });
    const log = expectAgreement(job.directory, exit);
    expect(log.bytes.toString()).toBe(Array.from({ length: 500 }, (_, i) => `${i}\n`).join(""));
    expect(bytesOf(log, "stderr")).toHaveLength(0);
  });

  test("binary data comes out as it went in", async () => {
    await using it = await rig(variant);
    const path = join(it.directory, "random");
    const sent = Buffer.concat([Uint8Array.from({ length: 256 }, (_, i) => i), randomBytes(3 * KiB * KiB)]);
    writeFileSync(path, sent);
    const { job, exit } = await it.run({ script: `cat ${path}` });
    const { bytes } = expectAgreement(job.directory, exit);
    expect(createHash("sha256").update(bytes).digest("hex")).toBe(createHash("sha256").update(sent).digest("hex"));
  });

  test("a job that writes nothing has an empty log", async () => {
    await using it = await rig(variant);
    const { job, exit } = await it.run({ script: "" });
    expect(expectAgreement(job.directory, exit)).toMatchObject({ pieces: [], first: 0, dropped: 0, gapEnd: 0 });
  });

  test("with the newest kept, disk use is bounded and what is kept is the end", async () => {
    await using it = await rig(variant);
    const limit = 256 * KiB;
    const { job, exit } = await it.run({ script: `seq ${NUMBERS}`, logLimitBytes: limit });
    const { bytes, first, dropped } = expectAgreement(job.directory, exit);
    expect(exit).toMatchObject({ size: numbers.length });
    expect(dropped).toBe(first);
    expect(bytes.subarray(first).equals(numbers.subarray(first))).toBe(true);
    expect(numbers.length - first).toBeGreaterThan(limit / 2);
    expect(onDisk(job.directory, "output", "index")).toBeLessThanOrEqual(limit + 3 * 4 * KiB);
  });

  test("with the newest kept, the index is bounded too", async () => {
    await using it = await rig(variant);
    const limit = 64 * KiB;
    const argv = [compile("alternates", it), "8000", "64"];
    const { job, exit } = await it.run({ argv, logLimitBytes: limit });
    const log = expectAgreement(job.directory, exit);
    expect(exit).toMatchObject({ size: 512_000, dropped: log.first });
    expect(onDisk(job.directory, "output", "index")).toBeLessThanOrEqual(limit + 3 * 4 * KiB);
    expect(log.pieces[0]?.offset).toBeLessThanOrEqual(log.first);
    expect(log.pieces[1]?.offset).toBeGreaterThan(log.first);
    for (const [i, { source, offset }] of log.pieces.entries()) {
      expect(source).toBe((offset / 64) % 2 ? "stderr" : "stdout");
      if (i > 0) expect(offset - (log.pieces[i - 1]?.offset ?? 0)).toBe(64);
    }
  });

  test("with the oldest kept, disk use is bounded, what is kept is the beginning, and the rest is a gap", async () => {
    await using it = await rig(variant);
    const limit = 256 * KiB;
    const script = `seq ${NUMBERS}; echo error >&2`;
    const { job, exit } = await it.run({ script, logLimitBytes: limit, logKeep: "oldest" });
    const { bytes, first, dropped, gapEnd } = expectAgreement(job.directory, exit);
    expect(exit).toMatchObject({ size: numbers.length + 6, code: 0 });
    expect({ first, dropped, gapEnd }).toEqual({
      first: 0,
      dropped: gapEnd - bytes.length,
      gapEnd: numbers.length + 6,
    });
    expect(bytes.equals(numbers.subarray(0, bytes.length))).toBe(true);
    expect(bytes.length).toBeGreaterThan(limit - PUMP_BYTES / 2);
    expect(onDisk(job.directory, "output", "index")).toBeLessThanOrEqual(limit + 2 * 4 * KiB);
  });

  test("with the oldest kept, one write that is larger than the limit is kept up to the limit", async () => {
    await using it = await rig(variant);
    const { job, exit } = await it.run({ script: "seq 10000", logLimitBytes: 4 * KiB, logKeep: "oldest" });
    const { bytes, pieces } = expectAgreement(job.directory, exit);
    expect(bytes.length + 16 * pieces.length).toBeLessThanOrEqual(4 * KiB);
    expect(bytes.length + 16 * pieces.length).toBeGreaterThanOrEqual(4 * KiB - 2 * 16);
  });

  test("beyond the file size limit output is dropped and counted, the job goes on, and so does its log afterwards", async () => {
    await using it = await rig(variant);
    const limit = (job: Job, bytes: string): void =>
      void execFileSync("prlimit", ["--pid", String(job.supervisor), `--fsize=${bytes}:`]);
    await fillAndRecover(
      it,
      (job) => limit(job, "unlimited"),
      (job) => limit(job, "524288"),
    );
  });

  test(
    "on a full disk output is dropped and counted, the job goes on, and so does its log when there is room",
    needsRoot,
    async () => {
      await using it = await rig(variant);
      const jobs = join(it.directory, "small");
      mkdirSync(jobs);
      execFileSync("mount", ["-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs", jobs]);
      try {
        await using small = await rig(variant, { jobs });
        writeFileSync(join(jobs, "ballast"), Buffer.alloc(512 * KiB));
        await fillAndRecover(small, () => rmSync(join(jobs, "ballast")));
      } finally {
        execFileSync("umount", [jobs]);
      }
    },
  );

  test("a job's end is recorded on a disk that stays full", needsRoot, async () => {
    await using it = await rig(variant);
    const jobs = join(it.directory, "small");
    mkdirSync(jobs);
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=256k,mode=755", "tmpfs", jobs]);
    try {
      await using small = await rig(variant, { jobs });
      const { exit, job } = await small.run({ script: `seq ${NUMBERS}; exit 6` });
      expect(exit).toMatchObject({ code: 6, size: numbers.length });
      expectAgreement(job.directory, exit);
      // Spares have what they need from before.
      const ends: unknown[] = [];
      for (let i = 0; i < 5; i++) ends.push(await small.run({ script: "" }).catch((error: unknown) => error));
      expect(ends.at(-1)).toMatchObject({ facts: { errno: "ENOSPC" } });
      rmSync(job.directory, { recursive: true });
      // Bytes that were a gap first and were let go as the oldest afterwards count once.
      const rotated = await small.run({ script: `seq ${NUMBERS}`, logLimitBytes: 512 * KiB });
      expect(expectAgreement(rotated.job.directory, rotated.exit).first).toBeGreaterThan(0);
    } finally {
      execFileSync("umount", [jobs]);
    }
  });
});
