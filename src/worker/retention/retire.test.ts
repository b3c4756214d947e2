import { spawnSync } from "node:child_process";
import { randomBytes, randomInt } from "node:crypto";
import {
  copyFileSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statfsSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { zstdDecompressSync } from "node:zlib";
import { describe, expect, test } from "vitest";
import { unless } from "../../testing/root.ts";
import { noMounts, smallDisk } from "../../testing/disks.ts";
import { failing, noInjection } from "../../testing/strace.ts";
import { compressLog } from "../log/compress.ts";
import { openLog } from "../log/log.ts";
import { readOutput } from "../log/reader.ts";
import type { WorkerOptions } from "../model/options.ts";
import {
  finished,
  open,
  readAll,
  refused,
  run,
  sh,
  startReady,
  testDaemon,
  testDirectory,
  testWorker,
  type TestWorker,
  until,
} from "../testing/worker.ts";

const MIB = 2 ** 20;
/** Both sources in turn, over several frames. */
const TALKS = "for i in $(seq 6); do seq $((i * 20000)); seq $((i * 5000)) >&2; done";

const compressed = (worker: TestWorker, id: string): Promise<true> =>
  until(`${id} is compressed`, () => {
    const log = worker.query(id).log;
    return log?.kind === "compressed" && log.due !== true;
  });
const logFiles = (directory: string): string[] =>
  readdirSync(directory)
    .filter((file) => /^(output|index)/.test(file))
    .toSorted();

describe("a finished log", () => {
  test("is compressed, reads as before, takes less of the disk, and is what zstd knows", async () => {
    await using worker = await testWorker();
    const { id, output } = await finished(worker, sh(TALKS));
    const before = await readAll(worker.stream(id, { times: true }));
    const bytes = readFileSync(join(worker.directory(id), "output"));
    const taken = worker.query(id).log;
    await worker.close();
    // What there is when a daemon compresses for the first time is compressed, too.
    await using next = await testWorker({ stateDir: worker.stateDir, logCompress: "zstd" });
    await compressed(next, id);
    expect(logFiles(next.directory(id))).toEqual(["index.zst", "output.zst"]);
    const after = await readAll(next.stream(id, { times: true }));
    expect({ ...after, job: undefined }).toEqual({ ...before, job: undefined });
    const { log } = next.query(id);
    expect(log).toMatchObject({ kind: "compressed" });
    if (log?.kind !== "compressed" || taken?.kind !== "kept") throw new Error("it was kept, and is compressed");
    expect(log.bytes).toBeLessThan(taken.bytes / 2);
    for (let i = 0; i < 30; i++) {
      const at = randomInt(output.size);
      const read = await readAll(next.stream(id, { position: { kind: "offset", offset: at } }));
      expect(read.bytes.equals(bytes.subarray(at))).toBe(true);
    }
    const path = join(next.directory(id), "output.zst");
    expect(zstdDecompressSync(readFileSync(path)).equals(bytes)).toBe(true);
    expect(zstdDecompressSync(readFileSync(join(next.directory(id), "index.zst"))).toString("latin1", 0, 8)).toBe(
      "jobslog1",
    );
    const tool = spawnSync("zstd", ["-dc", path], { maxBuffer: 64 * MIB });
    if (!tool.error) expect(tool.stdout.equals(bytes)).toBe(true);
  });

  test("that is one block is left as it is", async () => {
    await using worker = await testWorker({ logCompress: "zstd" });
    const { id } = await finished(worker, run("echo", "little"));
    await until("it was looked at", () => {
      const { log } = worker.query(id);
      return log?.kind === "kept" && log.due !== true;
    });
    expect(logFiles(worker.directory(id))).toEqual(["index", "output"]);
  });

  test("is compressed as its start asked, whatever others are", async () => {
    await using worker = await testWorker({ logCompress: "zstd" });
    const plain = await finished(worker, { ...sh(TALKS), log: { compress: "off" } });
    const { id } = await finished(worker, sh(TALKS));
    await compressed(worker, id);
    expect(logFiles(worker.directory(plain.id))).toEqual(["index", "output"]);
    await using other = await testWorker();
    const asked = await finished(other, { ...sh(TALKS), log: { compress: "zstd" } });
    await compressed(other, asked.id);
    expect(other.query(asked.id).logPolicy).toMatchObject({ compress: "zstd", keep: "newest" });
  });

  test("goes on for who has it open, and is there at every moment for who opens it", async () => {
    await using worker = await testWorker();
    const { id, output } = await finished(worker, sh(TALKS));
    const reading = worker.stream(id, {});
    const first = await reading.next();
    let done = false;
    const compressing = compressLog(worker.directory(id), new AbortController().signal).finally(() => (done = true));
    let reads = 0;
    while (!done) {
      const { bytes } = await readAll(worker.stream(id, { position: { kind: "tail-bytes", count: 300_000 } }));
      expect(bytes.length).toBe(300_000);
      reads++;
    }
    await compressing;
    expect(reads).toBeGreaterThan(0);
    const { bytes } = await readAll(reading);
    expect(bytes.length).toBe(output.size - (first.done || first.value.kind === "gap" ? 0 : first.value.bytes.length));
  });

  test("that has let go of its oldest bytes holds only what it kept", async () => {
    await using worker = await testWorker({ logLimitBytes: MIB, logCompress: "zstd" });
    const { id, output } = await finished(worker, sh("seq 3000000"));
    await compressed(worker, id);
    expect(output.first).toBeGreaterThan(15 * MIB);
    expect(zstdDecompressSync(readFileSync(join(worker.directory(id), "output.zst"))).length).toBe(
      output.size - output.first,
    );
    const { bytes, gaps } = await readAll(worker.stream(id, { position: { kind: "offset", offset: 10 } }));
    expect(gaps).toEqual([{ kind: "gap", offset: 10, length: output.first - 10 }]);
    expect(bytes.toString().endsWith("\n2999999\n3000000\n")).toBe(true);
    expect(bytes.length).toBe(output.size - output.first);
  });

  test("with a hole of a tebibyte is compressed without it, and tells of it in its place", async () => {
    using directory = testDirectory();
    const hole = 2 ** 40;
    const [head, tail] = [randomBytes(300_000), randomBytes(700_000)];
    const output = openSync(join(directory.path, "output"), "w");
    writeSync(output, head, 0, head.length, 0);
    writeSync(output, tail, 0, tail.length, head.length + hole);
    writeFileSync(
      join(directory.path, "index"),
      indexOf([
        [0, 1],
        [head.length, 0],
        [head.length + hole, 2],
      ]),
    );
    expect(await compressLog(directory.path, new AbortController().signal)).toBe(true);
    using log = openLog(directory.path);
    const live = { ended: () => true, subscribe: () => ({ [Symbol.dispose]() {} }) };
    const read: Buffer[] = [];
    const gaps: unknown[] = [];
    for await (const piece of readOutput(log, live, {}))
      if (piece.kind === "gap") gaps.push(piece);
      else read.push(Buffer.from(piece.bytes));
    expect(Buffer.concat(read).equals(Buffer.concat([head, tail]))).toBe(true);
    expect(gaps).toEqual([{ kind: "gap", offset: head.length, length: hole }]);
    expect(statSync(join(directory.path, "output.zst")).size).toBeLessThan(1_010_000);
  });

  test("that the disk has damaged fails its readers, and gives them no other bytes", async () => {
    await using worker = await testWorker({ logCompress: "zstd" });
    const { id } = await finished(worker, sh(TALKS));
    await compressed(worker, id);
    const path = join(worker.directory(id), "output.zst");
    const bytes = readFileSync(path);
    bytes.writeUInt8(bytes.readUInt8(5000) ^ 1, 5000);
    writeFileSync(path, bytes);
    expect(await refused(() => readAll(worker.stream(id, {})))).toMatchObject({ code: "data-loss" });
    const indexPath = path.replace("output", "index");
    const index = readFileSync(indexPath);
    // How many frames there are, at the end: a table of them would be 34 GB.
    index.writeUInt32LE(0xffffffff, index.length - 9);
    for (const each of [index, bytes.subarray(0, 5000)]) {
      writeFileSync(indexPath, each);
      const before = process.memoryUsage().arrayBuffers;
      expect(() => openLog(worker.directory(id))).toThrow("the table of a compressed log is damaged");
      expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(MIB);
      expect(await refused(() => readAll(worker.stream(id, {})))).toMatchObject({ code: "data-loss" });
    }
  });

  test("of which files are missing is left as it is, and keeps no other waiting", async () => {
    using files = testDirectory();
    await using worker = await testWorker();
    const [one, other] = [await finished(worker, sh(TALKS)), await finished(worker, sh(TALKS))];
    await worker.close();
    rmSync(join(worker.directory(one.id), "index"));
    const archive = { kind: "directory", path: files.path } as const;
    await using next = await testWorker({ stateDir: worker.stateDir, logCompress: "zstd", archive });
    await until("the other is archived", () => next.query(other.id).log?.kind === "archived");
    expect(logFiles(next.directory(one.id))).toEqual(["output"]);
    expect(next.query(one.id).log?.kind).toBe("kept");
    expect(next.logged.filter((line) => line.includes("files of a log are missing or damaged"))).toHaveLength(1);
  });
});

/** An index as a supervisor writes it, of records of an offset and a source each. */
function indexOf(records: readonly (readonly [number, number])[]): Buffer {
  const bytes = Buffer.alloc(64 + records.length * 16);
  bytes.write("jobslog1", "latin1");
  for (const [i, [offset, source]] of records.entries()) {
    bytes.writeUIntLE(offset, 64 + i * 16, 6);
    bytes.writeUInt16LE(source, 70 + i * 16);
    bytes.writeUIntLE(1_790_000_000_000, 72 + i * 16, 6);
  }
  return bytes;
}

describe("a daemon that died while it compressed a log", () => {
  /** Of the files that there are at some time: how to leave what there is at one moment. */
  const moments: [string, (directory: string, aside: string) => void][] = [
    ["before anything was written", (at) => remove(at, "output.zst", "index.zst")],
    [
      "in the middle of writing",
      (at) => {
        for (const name of ["output.zst", "index.zst"]) renameSync(join(at, name), join(at, `${name}.new`));
        truncateSync(join(at, "output.zst.new"), 1000);
        truncateSync(join(at, "index.zst.new"), 10);
      },
    ],
    [
      "when all was written",
      (at) => ["output.zst", "index.zst"].forEach((n) => renameSync(join(at, n), join(at, `${n}.new`))),
    ],
    ["when the index had its name", (at) => renameSync(join(at, "output.zst"), join(at, "output.zst.new"))],
    ["when both had their names", () => {}],
    ["when the plain output was gone", (at) => remove(at, "output")],
    ["when the plain files were gone", (at) => remove(at, "output", "index")],
  ];
  function remove(directory: string, ...names: string[]): void {
    for (const name of names) rmSync(join(directory, name));
  }

  test.each(moments)("%s, leaves a log that can be read, and the next one goes on", async (_when, leave) => {
    await using worker = await testWorker();
    const { id } = await finished(worker, sh(TALKS));
    const wanted = (await readAll(worker.stream(id, {}))).bytes;
    const directory = worker.directory(id);
    for (const name of ["output", "index"]) copyFileSync(join(directory, name), join(directory, `${name}.copy`));
    await compressLog(directory, new AbortController().signal);
    for (const name of ["output", "index"]) renameSync(join(directory, `${name}.copy`), join(directory, name));
    leave(directory, directory);
    expect((await readAll(worker.stream(id, {}))).bytes.equals(wanted)).toBe(true);
    await worker.close();
    const journal = new DatabaseSync(join(worker.stateDir, "journal.db"));
    journal.exec("UPDATE jobs SET log_due = 1");
    journal.close();
    await using next = await testWorker({ stateDir: worker.stateDir, logCompress: "zstd" });
    await compressed(next, id);
    expect(logFiles(directory)).toEqual(["index.zst", "output.zst"]);
    expect((await readAll(next.stream(id, {}))).bytes.equals(wanted)).toBe(true);
  });
});

test.each([
  ["does not compress", "kept", "log_due = 1"],
  ["archives", "archived", "log_due = 1"],
  ["finds it archived", "archived", "log_due = 1, log = 'archived', log_zstd = 0, log_at = 1000"],
] as const)(
  "what a daemon has left that was killed while it compressed is removed by one that %s",
  async (_what, kind, values) => {
    using files = testDirectory();
    await using worker = await testWorker();
    const { id } = await finished(worker, sh(TALKS));
    await worker.close();
    for (const name of ["output", "index"]) writeFileSync(join(worker.directory(id), `${name}.zst.new`), "a part");
    const journal = new DatabaseSync(join(worker.stateDir, "journal.db"));
    journal.exec(`UPDATE jobs SET ${values}`);
    journal.close();
    await using next = await testWorker({
      stateDir: worker.stateDir,
      ...(kind === "archived" && { archive: { kind: "directory", path: files.path } }),
    });
    const left = kind === "kept" ? "index,output" : "";
    await until("only what is to be there is", () => logFiles(next.directory(id)).join() === left);
    expect(next.query(id).log?.kind).toBe(kind);
  },
);

test.each([
  ["compressed", "output.zst.new", "openat", "EMFILE"],
  ["compressed", "output.zst.new", "pwrite64", "EIO"],
  ["compressed", "index.zst.new", "fsync", "EIO"],
  ["archived", ".partial-output", "openat", "EMFILE"],
  ["archived", ".partial-output", "write", "EDQUOT"],
  ["archived", ".partial-output", "fsync", "EIO"],
] as const)(
  "a log is %s in the end when, of %s, %s fails for a time with %s",
  unless(noInjection),
  async (how, file, call, errno) => {
    using files = testDirectory();
    const [stateDir, path, gate] = ["state", "archive", "gate"].map((name) => join(files.path, name)) as [
      string,
      string,
      string,
    ];
    mkdirSync(path);
    const options: WorkerOptions = {
      ...(how === "compressed" ? { logCompress: "zstd" } : { archive: { kind: "directory", path } }),
      name: "w",
      stateDir,
      compressPauses: { firstMs: 5, lastMs: 20 },
      archivePauses: { firstMs: 5, lastMs: 20 },
    };
    await using daemon = await testDaemon(options);
    const { id } = await daemon.start(sh(`${TALKS}; until [ -e "$0" ]; do sleep 0.01; done`, gate));
    const directory = join(stateDir, "jobs", id);
    {
      const at = how === "compressed" ? join(directory, file) : join(path, "w", id, file);
      await using fault = await failing(daemon.pid, call, errno, at);
      open(gate);
      await fault.met(3);
      expect(logFiles(directory)).toEqual(expect.arrayContaining(["index", "output"]));
    }
    await until(how, () => logFiles(directory).join() === (how === "compressed" ? "index.zst,output.zst" : ""));
    await daemon.kill();
    await using worker = await testWorker(options);
    const { bytes } = await readAll(worker.stream(id, {}));
    expect(bytes.length).toBe(worker.query(id).output.size);
    expect(bytes.includes("\n119999\n120000\n")).toBe(true);
  },
);

test("a full disk leaves a log as it is, is told once, and is tried again", unless(noMounts), async () => {
  using files = testDirectory();
  using disk = smallDisk(join(files.path, "disk"), 8 * MIB);
  const compressPauses = { firstMs: 5, lastMs: 20 };
  await using worker = await testWorker({ stateDir: join(disk.path, "state"), compressPauses });
  const [bytes, gate, filler] = ["bytes", "gate", "disk/filler"].map((name) => join(files.path, name)) as [
    string,
    string,
    string,
  ];
  writeFileSync(bytes, randomBytes(3 * MIB));
  const { id } = await startReady(worker, {
    ...sh('echo ready; cat "$0"; until [ -e "$1" ]; do sleep 0.01; done', bytes, gate),
    log: { compress: "zstd" },
  });
  await until("all is written", () => worker.query(id).output.size > 3 * MIB);
  const { bavail, bsize } = statfsSync(disk.path);
  writeFileSync(filler, Buffer.alloc(bavail * bsize - MIB));
  open(gate);
  await worker.wait(id);
  const failures = (): number => worker.logged.filter((line) => line.includes("logs cannot be compressed")).length;
  await until("it is told", () => failures() > 0);
  expect((await readAll(worker.stream(id, {}))).bytes.length).toBe(3 * MIB + 6);
  expect(logFiles(worker.directory(id)).filter((name) => !name.endsWith(".new"))).toEqual(["index", "output"]);
  truncateSync(filler);
  await compressed(worker, id);
  expect(failures()).toBe(1);
  expect(worker.logged).toContain("info: logs can be compressed again");
  expect((await readAll(worker.stream(id, {}))).bytes.length).toBe(3 * MIB + 6);
});
