import { chmodSync, existsSync, mkdirSync, readdirSync, renameSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { unless } from "../../testing/root.ts";
import { noMounts, smallDisk } from "../../testing/disks.ts";
import type { PruneFilter } from "../jobs/remove.ts";
import type { JobSpec } from "../model/job.ts";
import {
  finished,
  jobDirectories,
  readAll,
  refused,
  run,
  sh,
  startReady,
  testDirectory,
  testWorker,
  type TestWorker,
  until,
  waits,
} from "../testing/worker.ts";

const never = new AbortController().signal;

async function ended(worker: TestWorker, spec: JobSpec): Promise<string> {
  const { job } = await worker.start(spec);
  await worker.wait(job.id);
  return job.id;
}

async function pruned(worker: TestWorker, filter: PruneFilter): Promise<string[]> {
  const ids: string[] = [];
  for await (const some of worker.prune(filter, never)) ids.push(...some);
  return ids;
}

/** Returns the jobs whose files are yet to go, as the journal has them. */
function removals(stateDir: string): string[] {
  using database = new DatabaseSync(join(stateDir, "journal.db"), { readOnly: true });
  return database
    .prepare("SELECT id FROM removals ORDER BY id")
    .all()
    .map(({ id }) => String(id));
}

const listed = (worker: TestWorker): string[] => worker.list({ limit: 100 }).jobs.map(({ id }) => id);

describe("a job that is removed", () => {
  test("leaves nothing: no call knows it, and its request id starts another", async () => {
    await using worker = await testWorker();
    const spec = { ...sh("echo said"), requestId: "once", labels: new Map([["build", "42"]]) };
    const [id, other] = [await ended(worker, spec), await ended(worker, run("true"))];
    await worker.remove(id);
    expect(worker.traces()).toEqual([`dir:${other}`, `row:${other}`]);
    for (const call of [
      () => worker.query(id),
      () => worker.wait(id),
      () => worker.stream(id, {}),
      () => worker.remove(id),
      () => worker.stop(id, { by: "tester" }),
    ])
      expect(await refused(call)).toMatchObject({ code: "not-found" });
    expect((await worker.start(spec)).alreadyStarted).toBe(false);
  });

  test("has ended: one that runs is refused, and runs on", async () => {
    await using worker = await testWorker();
    const { id } = await startReady(worker, waits);
    const error = await refused(() => worker.remove(id));
    expect(error).toMatchObject({ code: "precondition", facts: { state: "running" } });
    expect(error.message).toContain("stop it first");
    expect(await pruned(worker, { olderThanMs: 0 })).toEqual([]);
    expect(worker.query(id).state).toBe("running");
  });

  test("can be one that has ended only just, and be removed by many at once", async () => {
    await using worker = await testWorker();
    for (let i = 0; i < 10; i++) {
      const { job } = await worker.start(run("true"));
      const { ended: how } = await worker.wait(job.id);
      expect(how?.exitCode).toBe(0);
      const all = await Promise.allSettled([1, 2, 3].map(() => worker.remove(job.id)));
      expect(all.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    }
    expect(worker.traces()).toEqual([]);
  });

  test("ends its readers, who are told, and frees their disk at once", async () => {
    await using worker = await testWorker();
    const id = await ended(worker, sh("head -c 8M /dev/zero"));
    const stream = worker.stream(id, {});
    await stream.next();
    await worker.remove(id);
    expect(await refused(() => readAll(stream))).toMatchObject({ code: "not-found", reason: "removed" });
  });

  test("leaves the archive its copy, or takes it along; without an archive that cannot be asked for", async () => {
    using files = testDirectory();
    const path = join(files.path, "archive");
    mkdirSync(path);
    await using worker = await testWorker({ archive: { kind: "directory", path } });
    const ids = [await ended(worker, sh("echo one")), await ended(worker, sh("echo two"))];
    for (const id of ids) await until(`${id} is archived`, () => worker.query(id).log?.kind === "archived");
    const [one = "", two = ""] = ids;
    await worker.remove(one);
    await worker.remove(two, { archived: true });
    const copies = (): string[] => readdirSync(path).flatMap((name) => readdirSync(join(path, name)));
    await until("the copy is gone", () => !copies().includes(two));
    expect(copies()).toEqual([one]);
    await using other = await testWorker();
    const error = await refused(async () => other.remove(await ended(other, run("true")), { archived: true }));
    expect(error).toMatchObject({ code: "precondition", message: expect.stringContaining("--archive") });
  });

  test("takes its copy along once the archive is back", async () => {
    using files = testDirectory();
    const path = join(files.path, "archive");
    mkdirSync(path);
    const options = { archive: { kind: "directory", path }, archivePauses: { firstMs: 10, lastMs: 20 } } as const;
    await using worker = await testWorker(options);
    const id = await ended(worker, sh("echo one"));
    await until("it is archived", () => worker.query(id).log?.kind === "archived");
    const [home = ""] = readdirSync(path).map((name) => join(path, name));
    await worker.close();
    // What is not a directory can be read by nobody, root neither.
    const away = `${home}.away`;
    renameSync(home, away);
    writeFileSync(home, "");
    await using next = await testWorker({ ...options, stateDir: worker.stateDir });
    await next.remove(id, { archived: true });
    expect(await refused(() => next.query(id))).toMatchObject({ code: "not-found" });
    await until("it is told", () =>
      next.logged.some((line) => line.includes("a removed job's files cannot be removed")),
    );
    rmSync(home);
    renameSync(away, home);
    await until("the copy is gone", () => readdirSync(home).length === 0);
  });

  test("takes its copy along once a daemon has an archive again, and is not forgotten by those without", async () => {
    using files = testDirectory();
    const [path, away] = [join(files.path, "archive"), join(files.path, "away")];
    mkdirSync(path);
    const options = { archive: { kind: "directory", path }, archivePauses: { firstMs: 10, lastMs: 20 } } as const;
    await using worker = await testWorker(options);
    const { stateDir } = worker;
    const { id: first } = await startReady(worker, waits); // the first to have its turn later
    const ids = [await ended(worker, sh("echo one")), await ended(worker, sh("echo two"))];
    for (const id of ids) await until(`${id} is archived`, () => worker.query(id).log?.kind === "archived");
    renameSync(path, away);
    writeFileSync(path, ""); // what is not a directory can be read by nobody, root neither
    await worker.stop(first, { by: "tester", graceMs: 0 });
    for (const id of [...ids, first]) await worker.remove(id, { archived: true });
    await worker.close();
    for (let i = 0; i < 2; i++) {
      const without = await testWorker({ stateDir });
      await until("it is told", () => without.logged.some((line) => line.includes("--archive")));
      await without.close();
      expect(removals(stateDir)).toEqual(ids.toSorted());
      expect(without.logged.filter((line) => line.includes("--archive"))).toHaveLength(1);
    }
    rmSync(path);
    renameSync(away, path);
    await using next = await testWorker({ ...options, stateDir });
    await until(
      "the copies are gone",
      () => readdirSync(path).flatMap((name) => readdirSync(join(path, name))).length === 0,
    );
    await next.close();
    expect(removals(stateDir)).toEqual([]);
  });

  test("on a full disk makes room for saying so", unless(noMounts), async () => {
    using files = testDirectory();
    using small = smallDisk(join(files.path, "disk"), 24 * 2 ** 20);
    chmodSync(small.path, 0o755);
    await using worker = await testWorker({ stateDir: join(small.path, "state"), logLimitBytes: 2 ** 20 });
    const id = await ended(worker, sh("head -c 900K /dev/zero"));
    small.fill();
    await worker.remove(id);
    expect(jobDirectories(worker.stateDir)).toEqual([]);
    expect(statfsSync(small.path).bavail).toBeGreaterThan(0);
    small.empty();
  });
});

describe("pruning removes", () => {
  test("what meets all conditions, tells which, and with a dry run only that", async () => {
    await using worker = await testWorker();
    const labelled = (spec: JobSpec, build: string): JobSpec => ({ ...spec, labels: new Map([["build", build]]) });
    const old = await ended(worker, labelled(run("true"), "1"));
    const failed = await ended(worker, labelled(run("false"), "1"));
    await delay(1000);
    const { id: killed } = await finished(worker, labelled(sh("kill -9 $$"), "2"));
    const plain = await ended(worker, run("true"));
    const tries: readonly (readonly [PruneFilter, readonly string[]])[] = [
      [{ olderThanMs: 0 }, [old, failed, killed, plain]],
      [{ olderThanMs: 900 }, [old, failed]],
      [{ olderThanMs: 3_600_000 }, []],
      [{ labels: new Map([["build", "1"]]) }, [failed, old]],
      [{ labels: new Map([["build", "1"]]), olderThanMs: 3_600_000 }, []],
      [{ labels: new Map([["build", "3"]]) }, []],
      [{ ends: ["signalled"] }, [killed]],
      [{ ends: ["signalled", "exited"], labels: new Map([["build", "2"]]) }, [killed]],
      [{ ends: ["lost", "timed-out"] }, []],
    ];
    for (const [filter, ids] of tries) expect(await pruned(worker, { ...filter, dryRun: true })).toEqual(ids);
    expect(listed(worker)).toEqual([plain, killed, failed, old]);
    expect(await pruned(worker, { ends: ["exited"], labels: new Map([["build", "1"]]) })).toEqual([failed, old]);
    expect(listed(worker)).toEqual([plain, killed]);
    expect(jobDirectories(worker.stateDir)).toEqual([killed, plain].toSorted());
  });

  test("nothing where nothing says which jobs", async () => {
    await using worker = await testWorker();
    for (const filter of [{}, { ends: [], labels: new Map<string, string>() }, { dryRun: true }])
      expect(await refused(() => pruned(worker, filter))).toMatchObject({ code: "invalid", field: "older_than" });
  });
});

describe("a worker removes the jobs that ended first", () => {
  test("beyond a number", async () => {
    await using worker = await testWorker({ jobPrune: { count: 2 } });
    const ids: string[] = [];
    for (let i = 0; i < 5; i++) ids.push(await ended(worker, run("true")));
    await until("two are left", () => listed(worker).length === 2);
    expect(listed(worker)).toEqual(ids.slice(3).toReversed());
    await until("two directories are left", () => jobDirectories(worker.stateDir).length === 2);
  });

  test("when they are too old, at that moment, those of an earlier worker too, and none that runs", async () => {
    using files = testDirectory();
    const first = await testWorker({ stateDir: files.path });
    const id = await ended(first, run("true"));
    await first.close();
    await using worker = await testWorker({ stateDir: files.path, jobPrune: { ageMs: 2500 } });
    const { id: runs } = await startReady(worker, waits);
    const later = await ended(worker, run("true"));
    const endedMs = worker.query(later).endedAt?.getTime() ?? 0;
    await until("both are removed", () => listed(worker).length === 1);
    expect(Date.now() - endedMs).toBeGreaterThanOrEqual(2500);
    expect(listed(worker)).toEqual([runs]);
    expect(existsSync(worker.directory(id))).toBe(false);
    await until("that is told", () => worker.logged.includes("info: jobs that had ended were removed"));
  });

  test("but none whose log waits for the archive", async () => {
    using files = testDirectory();
    const path = join(files.path, "archive");
    const options = { jobPrune: { count: 0 }, archivePauses: { firstMs: 10, lastMs: 20 } };
    await using worker = await testWorker({ ...options, archive: { kind: "directory", path } });
    const id = await ended(worker, run("true"));
    await until("the archive is missed", () => worker.logged.some((line) => line.includes("logs cannot be archived")));
    expect(listed(worker)).toEqual([id]);
    mkdirSync(path);
    await until("it is removed", () => listed(worker).length === 0);
    expect(readdirSync(join(path, readdirSync(path)[0] ?? ""))).toEqual([id]);
  });
});
