import { execFileSync } from "node:child_process";
import { existsSync, fstatSync, mkdirSync, renameSync, rmSync, statfsSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { describe, expect, test } from "vitest";
import { needsRoot, unless } from "../../testing/root.ts";
import { noMounts, smallDisk } from "../../testing/disks.ts";
import { openJournal } from "../journal/journal.ts";
import type { Job, JobSpec } from "../model/job.ts";
import type { PruneLimits } from "../model/options.ts";
import {
  JOB,
  jobDirectories,
  openDescriptors,
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
import { openPruner } from "./prune.ts";

const MIB = 2 ** 20;
const HOUR_MS = 3_600_000;
const ENDED: Job = { ...JOB, state: "ended", endedAt: new Date(0) };

const pruned = (worker: TestWorker, id: string): Promise<true> =>
  until(`${id} is pruned`, () => worker.query(id).log?.kind === "pruned" && !existsSync(worker.directory(id)));
/** Runs a job to its end, and does not read what it says: that may be pruned at once. */
async function ended(worker: TestWorker, spec: JobSpec): Promise<Job> {
  const { job } = await worker.start(spec);
  return worker.wait(job.id);
}
/** Jobs of one MiB of output each, the first first. */
async function some(
  worker: TestWorker,
  count: number,
  spec: JobSpec = sh(`head -c ${MIB} /dev/zero`),
): Promise<string[]> {
  const ids = [];
  for (let i = 0; i < count; i++) ids.push((await ended(worker, spec)).id);
  return ids;
}

describe("logs are pruned, those that ended first first,", () => {
  test.each<[string, string, PruneLimits, number]>([
    ["by number", "count", { count: 2 }, 2],
    ["by what they take together", "size", { bytes: 3.5 * MIB }, 3],
    ["by both, whichever is less", "count", { count: 1, bytes: 100 * MIB }, 1],
  ])("%s", async (_what, why, logPrune, stay) => {
    await using worker = await testWorker({ logPrune });
    const ids = await some(worker, 5);
    const [gone, kept] = [ids.slice(0, 5 - stay), ids.slice(5 - stay)];
    for (const id of gone) await pruned(worker, id);
    expect(jobDirectories(worker.stateDir)).toEqual(kept.toSorted());
    for (const id of gone) expect(worker.query(id).log).toMatchObject({ kind: "pruned", why });
    for (const id of kept) expect((await readAll(worker.stream(id, {}))).bytes.length).toBe(MIB);
    expect(worker.list({ limit: 10 }).jobs).toHaveLength(5);
  });

  test("by age, with nobody asking, and no running job's", async () => {
    await using worker = await testWorker({ logPrune: { ageMs: 300 } });
    const { id: running } = await startReady(worker, waits);
    const [id = ""] = await some(worker, 1, run("echo", "old"));
    expect(worker.query(id).log?.kind).toBe("kept");
    await pruned(worker, id);
    expect(worker.query(id).log).toMatchObject({ kind: "pruned", why: "age" });
    expect((await readAll(worker.stream(running, {}))).text).toBe("ready\n");
  });

  test("by the job's own policy", async () => {
    await using worker = await testWorker({ logPrune: { ageMs: HOUR_MS } });
    const { id: stays } = await ended(worker, run("echo", "stays"));
    const { id } = await ended(worker, { ...run("echo", "goes"), log: { keepForMs: 200 } });
    await pruned(worker, id);
    expect(worker.query(id).log).toMatchObject({ kind: "pruned", why: "keep-for" });
    expect(worker.query(stays).log?.kind).toBe("kept");
  });

  test("by free space, which other files take, too", unless(noMounts), async () => {
    using files = testDirectory();
    using disk = smallDisk(join(files.path, "disk"), 16 * MIB);
    const free = (): number => {
      const { bavail, bsize } = statfsSync(disk.path);
      return bavail * bsize;
    };
    const logPrune = { free: { kind: "percent", amount: 25 }, freeEveryMs: 20 } as const;
    await using worker = await testWorker({ stateDir: join(disk.path, "state"), logPrune });
    const ids = await some(worker, 4);
    writeFileSync(join(disk.path, "others"), Buffer.alloc(free() - 2.5 * MIB));
    await pruned(worker, ids[0] ?? "");
    await pruned(worker, ids[1] ?? "");
    expect(free()).toBeGreaterThanOrEqual(4 * MIB);
    expect(worker.query(ids[0] ?? "").log).toMatchObject({ kind: "pruned", why: "free" });
    expect(worker.query(ids[3] ?? "").log?.kind).toBe("kept");
  });

  test("where the disk is full to the last byte", unless(noMounts), async () => {
    using files = testDirectory();
    using disk = smallDisk(join(files.path, "disk"), 16 * MIB);
    const options = {
      stateDir: join(disk.path, "state"),
      logPrune: { free: { kind: "percent", amount: 25 }, freeEveryMs: 20 },
    } as const;
    await using before = await testWorker({ stateDir: options.stateDir });
    const ids = await some(before, 6);
    await before.close();
    disk.fill();
    await using worker = await testWorker(options);
    await pruned(worker, ids[0] ?? "");
    await until("there is room", () => statfsSync(disk.path).bavail * 4 >= statfsSync(disk.path).blocks);
    expect(worker.query(ids[5] ?? "").log?.kind).toBe("kept");
  });

  test("by free space no more than is wanted, after what other limits took", unless(noMounts), async () => {
    using files = testDirectory();
    using disk = smallDisk(join(files.path, "disk"), 16 * MIB);
    const stateDir = join(disk.path, "state");
    await using before = await testWorker({ stateDir });
    const ids = await some(before, 10);
    await before.close();
    const { bavail, bsize } = statfsSync(disk.path);
    const free = { kind: "bytes", amount: bavail * bsize + 3 * MIB } as const;
    await using worker = await testWorker({ stateDir, logPrune: { free, count: 5 } });
    for (const id of ids.slice(0, 5)) await pruned(worker, id);
    const { id } = await ended(worker, run("true"));
    await pruned(worker, ids[5] ?? "");
    expect([...ids.slice(6), id].map((each) => worker.query(each).log?.kind)).toEqual(Array(5).fill("kept"));
    expect(worker.query(ids[4] ?? "").log).toMatchObject({ why: "count" });
  });

  test.each([{ log: { keepForMs: 300 } }, {}])(
    "by time, of one that is compressed before, as by %o",
    async (policy) => {
      await using worker = await testWorker({ logCompress: "zstd", ...(!policy.log && { logPrune: { ageMs: 300 } }) });
      const { id } = await ended(worker, { ...sh("seq 100000"), ...policy });
      await pruned(worker, id);
    },
  );

  test("though one of them cannot be removed", needsRoot, async () => {
    await using worker = await testWorker();
    const ids = await some(worker, 3, run("echo", "said"));
    await worker.close();
    const stuck = join(worker.directory(ids[0] ?? ""), "stuck");
    mkdirSync(stuck);
    writeFileSync(join(stuck, "file"), "");
    execFileSync("chattr", ["+i", join(stuck, "file")]);
    try {
      await using next = await testWorker({
        stateDir: worker.stateDir,
        logPrune: { count: 0 },
        compressPauses: { firstMs: 5, lastMs: 20 },
      });
      for (const id of ids.slice(1)) await pruned(next, id);
      expect(next.query(ids[0] ?? "").log?.kind).toBe("pruned");
      execFileSync("chattr", ["-i", join(stuck, "file")]);
      await pruned(next, ids[0] ?? "");
    } finally {
      if (existsSync(stuck)) execFileSync("chattr", ["-i", join(stuck, "file")]);
    }
  });

  test("by a daemon that is started with less than there is", async () => {
    await using worker = await testWorker();
    const ids = await some(worker, 3, run("echo", "said"));
    await worker.close();
    await using next = await testWorker({ stateDir: worker.stateDir, logPrune: { count: 1 } });
    for (const id of ids.slice(0, 2)) await pruned(next, id);
    expect(jobDirectories(next.stateDir)).toEqual(ids.slice(2));
  });
});

describe("a log that was pruned", () => {
  test("is told of by its job, and to who wants to read it: what, since when and why", async () => {
    await using worker = await testWorker({ logPrune: { count: 0 } });
    const before = Date.now();
    const [id = ""] = await some(worker, 1);
    await pruned(worker, id);
    const { log, output } = worker.query(id);
    if (log?.kind !== "pruned") throw new Error("it is pruned");
    expect(log.at.getTime()).toBeGreaterThanOrEqual(before);
    expect(log.bytes).toBeGreaterThanOrEqual(MIB);
    expect(output.size).toBe(MIB);
    for (const options of [{}, { follow: true, position: { kind: "offset", offset: 10 } }] as const)
      expect(await refused(() => worker.stream(id, options))).toMatchObject({
        code: "pruned",
        facts: { bytes: String(log.bytes), since: log.at.toISOString(), why: "count" },
        message: expect.stringContaining(`was pruned at ${log.at.toISOString()}`),
      });
    await worker.close();
    await using next = await testWorker({ stateDir: worker.stateDir });
    expect(next.query(id).log).toEqual(log);
    expect(await refused(() => next.stream(id, {}))).toMatchObject({ code: "pruned" });
  });

  test("while it was read ends its readers, even one that does not read on, and the disk has the room", async () => {
    await using worker = await testWorker({ logPrune: { count: 1 } });
    const [id = ""] = await some(worker, 1, sh(`head -c ${4 * MIB} /dev/zero`));
    const slow = worker.stream(id, {});
    const first = await slow.next();
    expect(first.done).toBe(false);
    const held = heldOpen(join(worker.directory(id), "output"));
    expect(fstatSync(held).blocks * 512).toBeGreaterThanOrEqual(4 * MIB);
    await some(worker, 1, run("true"));
    await pruned(worker, id);
    expect(fstatSync(held).blocks).toBe(0);
    expect(await refused(() => readAll(slow))).toMatchObject({ code: "pruned", facts: { why: "count" } });
  });

  test("is not read as an empty one while its files go", async () => {
    await using worker = await testWorker();
    const [id = ""] = await some(worker, 1);
    await worker.close();
    const journal = new DatabaseSync(join(worker.stateDir, "journal.db"));
    journal.exec("UPDATE jobs SET log = 'pruned', log_why = 'age', log_at = 1000, log_due = NULL");
    journal.close();
    truncateSync(join(worker.directory(id), "output"));
    await using next = await testWorker({ stateDir: worker.stateDir });
    expect(await refused(() => readAll(next.stream(id, {})))).toMatchObject({ code: "pruned" });
    rmSync(next.directory(id), { recursive: true });
  });

  test("by a daemon that died before its files were gone is removed by the next one", async () => {
    await using worker = await testWorker();
    const [id = ""] = await some(worker, 1, run("echo", "said"));
    await worker.close();
    const journal = new DatabaseSync(join(worker.stateDir, "journal.db"));
    journal.exec("UPDATE jobs SET log = 'pruned', log_why = 'age', log_at = 1000, log_due = 1");
    journal.close();
    await using next = await testWorker({ stateDir: worker.stateDir });
    await pruned(next, id);
    expect(jobDirectories(next.stateDir)).toEqual([]);
    expect(next.query(id).log).toMatchObject({ kind: "pruned", at: new Date(1000), why: "age" });
  });
});

test("with an archive, what is not archived yet is not pruned", async () => {
  using files = testDirectory();
  const [path, away] = [join(files.path, "archive"), join(files.path, "away")];
  mkdirSync(path);
  await using worker = await testWorker({
    archive: { kind: "directory", path },
    archivePauses: { firstMs: 5, lastMs: 20 },
    logPrune: { count: 0, ageMs: 1 },
  });
  renameSync(path, away);
  const { id } = await ended(worker, run("echo", "kept"));
  const { id: own } = await ended(worker, { ...run("echo", "own"), log: { archive: false } });
  const { id: short } = await ended(worker, { ...run("echo", "short"), log: { keepForMs: 1 } });
  await pruned(worker, own);
  await until("the archive was tried", () => worker.logged.some((line) => line.includes("logs cannot be archived")));
  expect((await readAll(worker.stream(id, {}))).text).toBe("kept\n");
  expect((await readAll(worker.stream(short, {}))).text).toBe("short\n");
  renameSync(away, path);
  for (const each of [id, short]) await until("it is archived", () => worker.query(each).log?.kind === "archived");
  expect((await readAll(worker.stream(id, {}))).text).toBe("kept\n");
});

test(
  "a daemon with its first archive starts on a full disk, and prunes nothing before it is archived",
  unless(noMounts),
  async () => {
    using files = testDirectory();
    using disk = smallDisk(join(files.path, "disk"), 16 * MIB);
    const stateDir = join(disk.path, "state");
    const [path, away] = [join(files.path, "archive"), join(files.path, "away")];
    mkdirSync(away);
    await using before = await testWorker({ stateDir });
    const ids = await some(before, 3);
    const { id: own } = await ended(before, { ...run("echo", "own"), log: { archive: false } });
    await before.close();
    disk.fill();
    const options = {
      stateDir,
      archive: { kind: "directory", path },
      archivePauses: { firstMs: 5, lastMs: 20 },
      compressPauses: { firstMs: 5, lastMs: 20 },
      logPrune: { count: 0, free: { kind: "percent", amount: 50 }, freeEveryMs: 5 },
    } as const;
    await using worker = await testWorker(options);
    const told = (text: string): Promise<true> => until(text, () => worker.logged.some((line) => line.includes(text)));
    await told("it cannot be recorded what is to be done with logs");
    await told("logs cannot be archived");
    expect(ids.map((id) => worker.query(id).log?.kind)).toEqual(["kept", "kept", "kept"]);
    renameSync(away, path);
    for (const id of ids) await until("it is archived", () => worker.query(id).log?.kind === "archived");
    await told("it is recorded what is to be done with logs");
    await pruned(worker, own);
    expect((await readAll(worker.stream(ids[0] ?? "", {}))).bytes.length).toBe(MIB);
  },
);

test("with an archive, what does not go there and cannot be compressed is pruned", async () => {
  using files = testDirectory();
  await using worker = await testWorker();
  const { id } = await ended(worker, { ...sh("seq 10000"), log: { archive: false } });
  await worker.close();
  truncateSync(join(worker.directory(id), "index"), 1);
  await using next = await testWorker({
    stateDir: worker.stateDir,
    archive: { kind: "directory", path: files.path },
    logCompress: "zstd",
    logPrune: { count: 0 },
  });
  await pruned(next, id);
  expect(next.logged.filter((line) => line.includes("logs cannot be compressed"))).toHaveLength(1);
});

test("while a log that cannot be compressed waits for its next try, others that end are pruned", async () => {
  await using worker = await testWorker();
  const { id: damaged } = await ended(worker, sh("seq 10000"));
  await worker.close();
  truncateSync(join(worker.directory(damaged), "index"), 1);
  await using next = await testWorker({
    stateDir: worker.stateDir,
    logCompress: "zstd",
    compressPauses: { firstMs: HOUR_MS, lastMs: HOUR_MS },
    logPrune: { count: 1 },
  });
  await until("it has failed", () => next.logged.some((line) => line.includes("logs cannot be compressed")));
  for (let oldest = damaged, i = 0; i < 3; i++) {
    const { id } = await ended(next, run("echo", "next"));
    await pruned(next, oldest);
    oldest = id;
  }
});

describe("a log that is being compressed is not pruned meanwhile,", () => {
  /** Three logs; the second becomes busy when `on` is pruned, or is from the start. */
  async function setup(count: number, on?: string) {
    const stack = new AsyncDisposableStack();
    const { path } = stack.use(testDirectory());
    const journal = stack.use(openJournal(path));
    for (const id of ["a", "b", "c"]) {
      journal.insert({ ...ENDED, id }, undefined);
      journal.update({ ...ENDED, id, log: { kind: "kept", bytes: 1 } });
    }
    const gone: string[] = [];
    let busy = on === undefined ? "b" : undefined;
    const pruner = stack.use(
      openPruner({
        limits: { count },
        jobsDir: path,
        logs: journal.logs,
        archiving: false,
        ready: () => true,
        busy: () => busy,
        async prune(id, why) {
          gone.push(id);
          journal.logs.pruned(id, why, new Date());
          if (id === on) busy = "b";
        },
        log: () => {},
      }),
    );
    pruner.run();
    return {
      gone,
      done() {
        busy = undefined;
        pruner.run();
      },
      [Symbol.asyncDispose]: () => stack.disposeAsync(),
    };
  }

  test("also when its turn has come while others were pruned", async () => {
    await using a = await setup(0, "a");
    await until("the others are pruned", () => a.gone.length === 2);
    expect(a.gone).toEqual(["a", "c"]);
    a.done();
    await until("it is pruned, too", () => a.gone.length === 3);
  });

  test("and no newer one in its place", async () => {
    await using a = await setup(1);
    await until("one is pruned", () => a.gone.length > 0);
    a.done();
    await until("the other is pruned", () => a.gone.length === 2);
    expect(a.gone).toEqual(["a", "b"]);
  });
});

describe("a start that asks for more than its worker keeps is refused:", () => {
  test.each<[string, JobSpec["log"], string, string | undefined]>([
    ["a higher limit", { limitBytes: 3 * MIB }, "log.limit", String(2 * MIB)],
    ["no limit", { limitBytes: 0 }, "log.limit", String(2 * MIB)],
    ["too low a limit", { limitBytes: 10 }, "log.limit", undefined],
    ["a longer life", { keepForMs: 2 * HOUR_MS }, "log.keep_for", "3600s"],
    ["no life", { keepForMs: 0 }, "log.keep_for", undefined],
    ["an archive", { archive: true }, "log.archive", undefined],
  ])("%s", async (_what, log, field, maximum) => {
    await using worker = await testWorker({ logLimitBytes: 2 * MIB, logPrune: { ageMs: HOUR_MS } });
    const error = await refused(() => worker.start({ ...run("true"), ...(log && { log }) }));
    expect(error.field).toBe(field);
    expect(error.facts["maximum"]).toBe(maximum);
    expect(worker.traces()).toEqual([]);
  });

  test("one that asks for less has it", async () => {
    await using worker = await testWorker({ logLimitBytes: 4 * MIB });
    const { id, output } = await ended(worker, {
      ...sh(`head -c ${3 * MIB} /dev/zero`),
      log: { limitBytes: MIB, keep: "oldest" },
    });
    expect(output.first).toBe(0);
    expect(output.size - output.dropped).toBeLessThanOrEqual(MIB);
    expect(worker.query(id).logPolicy).toEqual({ limitBytes: MIB, keep: "oldest" });
  });
});

/** This process's descriptor of a file. */
function heldOpen(path: string): number {
  const found = openDescriptors().find(({ target }) => target === path);
  if (found === undefined) throw new Error(`${path} is not open`);
  return Number(found.fd);
}
