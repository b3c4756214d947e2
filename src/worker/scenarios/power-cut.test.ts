import { existsSync, mkdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { describe, expect, test } from "vitest";
import { noMounts, reason, smallDisk } from "../../supervisor/testing/faults.ts";
import { writeJobFile } from "../journal/job-file.ts";
import { recoverJournal } from "../journal/rebuild.ts";
import { isSupervised } from "../supervisor/control.ts";
import {
  finished,
  JOB,
  open,
  readAll,
  refused,
  run,
  sh,
  startReady,
  testDirectory,
  testWorker,
  until,
  waits,
} from "../testing/worker.ts";

/* A crash of the host takes what was written last: of files that nobody syncs, and of the journal's -wal. */

/** A file of the same length, of which nothing had come to the disk. */
function zero(path: string): void {
  writeFileSync(path, Buffer.alloc(statSync(path).size));
}

function forget(stateDir: string, id: string): void {
  using database = new DatabaseSync(join(stateDir, "journal.db"));
  database.prepare("DELETE FROM jobs WHERE id = ?").run(id);
  database.exec("INSERT OR REPLACE INTO meta VALUES ('open', '1')");
}

test.each<[string, (exit: string) => void]>([
  ["is empty", (exit) => truncateSync(exit, 0)],
  ["is zeros", zero],
  ["is cut", (exit) => truncateSync(exit, statSync(exit).size - 8)],
])("a job whose exit record %s is lost, and is listed with all others", async (_what, damage) => {
  using files = testDirectory();
  const gate = join(files.path, "gate");
  await using worker = await testWorker();
  const other = await finished(worker, run("true"));
  const { id } = await startReady(worker, sh('echo ready; until [ -e "$0" ]; do sleep 0.01; done', gate));
  await worker.close();
  open(gate);
  const exit = join(worker.directory(id), "exit");
  await until("it has ended", () => existsSync(exit) && !isSupervised(worker.directory(id)));
  damage(exit);
  const ended = { how: { kind: "lost", reason: "its supervisor died while no jobsd ran" } };
  for (const _restart of [1, 2]) {
    const again = await testWorker({ stateDir: worker.stateDir });
    const job = await again.wait(id);
    expect(job).toMatchObject({ ended, output: { size: 6, first: 0, dropped: 0 } });
    expect(Number.isNaN(job.endedAt?.getTime())).toBe(false);
    expect(again.list({ limit: 10 }).jobs.map((each) => each.id)).toEqual([id, other.id]);
    await again.close();
  }
});

describe("a directory that the journal does not know, of which nothing can be read,", () => {
  test("is left and told; all else is found, by a recovery too", async () => {
    await using worker = await testWorker();
    const [damaged, unknown] = [await finished(worker, run("echo", "one")), await finished(worker, run("echo", "two"))];
    const { id } = await startReady(worker, waits);
    await worker.close();
    for (const each of [damaged.id, unknown.id, id]) forget(worker.stateDir, each);
    for (const file of ["job", "exit"]) rmSync(join(worker.directory(damaged.id), file));
    zero(join(worker.directory(damaged.id), "index"));
    const again = await testWorker({ stateDir: worker.stateDir });
    expect(
      again
        .list({ limit: 10 })
        .jobs.map((each) => each.id)
        .toSorted(),
    ).toEqual([unknown.id, id]);
    expect(again.logged).toContain("error: a directory that the journal does not know cannot be read, and is left");
    expect(existsSync(join(worker.directory(damaged.id), "output"))).toBe(true);
    await again.close();
    expect(recoverJournal(worker.stateDir)).toMatchObject({
      jobs: 2,
      ended: 1,
      running: 1,
      unreadable: [damaged.id],
      unstarted: [],
    });
    expect(existsSync(join(worker.directory(damaged.id), "output"))).toBe(true);
  });
});

test("a job whose index is damaged is as its record says, and its output is told as lost", async () => {
  await using worker = await testWorker();
  const { id } = await finished(worker, run("echo", "one"));
  await worker.close();
  forget(worker.stateDir, id);
  zero(join(worker.directory(id), "index"));
  await using again = await testWorker({ stateDir: worker.stateDir });
  expect(again.query(id)).toMatchObject({ command: "echo", ended: { exitCode: 0 } });
  expect(await refused(() => readAll(again.stream(id, {})))).toMatchObject({ code: "data-loss" });
});

test("a job that ended, and that the journal did not know, is taken in with its log", async () => {
  await using worker = await testWorker();
  const { id } = await finished(worker, run("echo", "one"));
  await worker.close();
  forget(worker.stateDir, id);
  await using again = await testWorker({ stateDir: worker.stateDir });
  expect(again.query(id)).toMatchObject({ state: "ended", log: { kind: "kept" } });
});

test("what a recovery calls not started, the next worker removes", async () => {
  await using worker = await testWorker();
  await worker.close();
  const directory = worker.directory("00000000000000000000000000");
  mkdirSync(directory);
  writeFileSync(join(directory, "output"), "");
  expect(recoverJournal(worker.stateDir).unstarted).toEqual([basename(directory)]);
  await using _again = await testWorker({ stateDir: worker.stateDir });
  expect(existsSync(directory)).toBe(false);
});

test.skipIf(noMounts)(`a record that the disk has no room for leaves the one before whole${reason(noMounts)}`, () => {
  using files = testDirectory();
  using small = smallDisk(join(files.path, "disk"), 64 * 1024);
  writeJobFile("abc", small.path, { job: JOB, requestId: undefined, stoppedBy: undefined });
  const before = readFileSync(join(small.path, "job"), "utf8");
  small.fill();
  truncateSync(join(small.path, "ballast"), 32 * 1024); // some of it fits
  const longer = { ...JOB, args: ["x".repeat(100_000)] };
  expect(() => writeJobFile("abc", small.path, { job: longer, requestId: undefined, stoppedBy: undefined })).toThrow(
    "ENOSPC",
  );
  expect(readFileSync(join(small.path, "job"), "utf8")).toBe(before);
  expect(existsSync(join(small.path, "job.new"))).toBe(false);
});
