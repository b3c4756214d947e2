import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { jobDirectories, modes, sh, testDaemon, testDirectory, testWorker, until } from "../testing/worker.ts";

/* A daemon that is killed at each step of a start and of an end. */

const START = "^\\S+ \\d+ .{8}01000000";
const GO = " 01$";

describe.each(modes)("a daemon %s that is killed", (_mode, options) => {
  test.each<[string, string, boolean | undefined]>([
    ["before a spare is told of the job", `before writeSync ${START}`, false],
    ["once a spare has been told of the job", `after writeSync ${START}`, false],
    ["before the job is recorded", "before run INSERT.INTO.jobs", false],
    ["once the job is recorded", "after run INSERT.INTO.jobs", false],
    ["before the directory has the job's name", "before renameSync spare", false],
    ["once the directory has the job's name", "after renameSync spare", false],
    ["before the spare is told to go on", `before writeSync ${GO}`, false],
    // Who comes first, the spare that reads it or the end of its daemon, is not for the daemon to say.
    ["once the spare is told to go on", `after writeSync ${GO}`, undefined],
    ["while the job's record is written beside its output", "before renameSync job.new", true],
    ["once the job's record is beside its output", "after renameSync job.new", true],
    ["before its end is recorded", "before run UPDATE.jobs.SET.state", true],
    ["once its end is recorded", "after run UPDATE.jobs.SET.state", true],
  ])("%s: its start happened once, and is found by its request id, or did not", async (_when, death, happened) => {
    using directory = testDirectory();
    const lines = join(directory.path, "lines");
    chmodSync(directory.path, 0o1777);
    const spec = { ...sh('echo ran >> "$0"; echo said; exit 7', lines), requestId: "once" };
    await using daemon = await testDaemon({ ...options, stateDir: join(directory.path, "state") }, death);
    const answer = daemon.start(spec).catch(() => "no answer");
    await daemon.died;
    await answer;
    await using worker = await testWorker({ ...options, stateDir: join(directory.path, "state") });
    const { job, alreadyStarted } = await worker.start(spec);
    expect(alreadyStarted).toBe(happened ?? alreadyStarted);
    expect((await worker.wait(job.id)).ended?.how).toEqual({ kind: "exited", code: 7 });
    expect(readFileSync(lines, "utf8")).toBe("ran\n");
    await until("nothing is left that has no record", () =>
      worker.traces().every((trace) => trace === `dir:${job.id}` || trace === `row:${job.id}`),
    );
    expect(jobDirectories(worker.stateDir)).toEqual([job.id]);
    expect(existsSync(join(worker.directory(job.id), "exit"))).toBe(true);
  });
});

test("a directory that has a job's name, but neither a record nor a start, is removed after a crash", async () => {
  using directory = testDirectory();
  const stateDir = join(directory.path, "state");
  await using daemon = await testDaemon({ ...modes[0]?.[1], stateDir });
  await daemon.kill();
  const lost = join(stateDir, "jobs", "01lost");
  mkdirSync(lost);
  writeFileSync(join(lost, "output"), "");
  await using worker = await testWorker({ ...modes[0]?.[1], stateDir });
  expect(worker.traces()).toEqual([]);
  expect(existsSync(lost)).toBe(false);
});
