import { createHash, randomInt } from "node:crypto";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { zstdDecompressSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { needsRoot, unless } from "../../testing/root.ts";
import { noMounts, smallDisk } from "../../testing/disks.ts";
import { recoverJournal } from "../journal/rebuild.ts";
import type { StreamOptions } from "../log/reader.ts";
import type { Job } from "../model/job.ts";
import type { WorkerOptions } from "../model/options.ts";
import {
  openDescriptors,
  finished,
  readAll,
  refused,
  run,
  sh,
  testDaemon,
  testDirectory,
  testWorker,
  type TestWorker,
  until,
} from "../testing/worker.ts";
import { BLOCK_BYTES } from "./blocks.ts";
import { PART_BYTES } from "./s3.ts";
import { type Proxy, startProxy } from "./testing/proxy.ts";
import { BUCKET, credentials, type S3Server, servers } from "./testing/s3.ts";

const MIB = 2 ** 20;
const BUILD_MS = 15 * 60_000;
const QUICK: Pick<WorkerOptions, "archivePauses"> = { archivePauses: { firstMs: 10, lastMs: 50 } };
/** 12 MB in 130,000 lines, one in ten of them on stderr, with pieces of all sizes. */
const TALKS = `seq 1 130000 | awk '{ line = sprintf("%d %080d", $1, $1); if ($1 % 10) print line; else print line > "/dev/stderr" }'`;

const local = (worker: TestWorker, id: string): string[] =>
  readdirSync(worker.directory(id)).filter((file) => /^(output|index)/.test(file));
const moved = (worker: TestWorker, id: string): Promise<true> =>
  until(`${id} is moved`, () => local(worker, id).length === 0);

/** What every way of reading gives, as far as bytes, gaps and places go. */
async function reads(worker: TestWorker, id: string, size: number): Promise<unknown[]> {
  const offset = (at: number): StreamOptions => ({ position: { kind: "offset", offset: at } });
  const ways: StreamOptions[] = [
    {},
    { follow: true },
    { source: "stderr" },
    { source: "stdout", ...offset(Math.floor(size / 3)) },
    { position: { kind: "tail-lines", count: 3 } },
    { position: { kind: "tail-bytes", count: 100_000 }, source: "stderr" },
    ...[0, 1, size - 1, size, BLOCK_BYTES - 1, BLOCK_BYTES].map(offset),
  ];
  const all = [];
  for (const way of ways) {
    const { bytes, gaps, offset: end, job } = await readAll(worker.stream(id, way));
    all.push({
      way,
      bytes: createHash("sha256").update(bytes).digest("hex"),
      length: bytes.length,
      gaps,
      end,
      job: { ...job, log: undefined },
    });
  }
  return all;
}

describe.each(["off", "zstd"] as const)("a log in the archive, compression %s,", (logCompress) => {
  /** Of a daemon that has ended. */
  async function archived(path: string): Promise<{
    readonly before: TestWorker;
    readonly options: Pick<WorkerOptions, "archive" | "logCompress" | "stateDir">;
    readonly id: string;
    readonly text: string;
    readonly log: Job["log"];
  }> {
    const options = { archive: { kind: "directory", path }, logCompress } as const;
    const before = await testWorker(options);
    const { id, text } = await finished(before, sh("seq 1 20000"));
    await moved(before, id);
    const { log } = before.query(id);
    await before.close();
    return { before, options: { ...options, stateDir: before.stateDir }, id, text, log };
  }

  test("of which the journal had no room to say so is read", async () => {
    using files = testDirectory();
    const { before, options, id, text } = await archived(files.path);
    await using _before = before;
    const journal = new DatabaseSync(join(before.stateDir, "journal.db"));
    journal.exec("UPDATE jobs SET log = 'kept', log_bytes = 1, log_due = NULL");
    journal.close();
    await using after = await testWorker(options);
    expect(after.query(id).log?.kind).toBe("kept");
    expect((await readAll(after.stream(id, {}))).text).toBe(text);
  });

  test("is known to be there when the journal was lost", async () => {
    using files = testDirectory();
    const { before, options, id, text, log } = await archived(files.path);
    await using _before = before;
    for (const end of ["", "-wal"]) rmSync(join(before.stateDir, `journal.db${end}`), { force: true });
    recoverJournal(before.stateDir);
    await using after = await testWorker(options);
    expect(after.query(id).log).toEqual(log);
    expect((await readAll(after.stream(id, {}))).text).toBe(text);
  });
});

describe("an archive in a directory", () => {
  test.each(["off", "zstd"] as const)(
    "has what a job said, with compression %s, which streams as before, and is on this disk no more",
    async (logCompress) => {
      using files = testDirectory();
      await using before = await testWorker();
      const { id, output } = await finished(before, sh(TALKS));
      const wanted = await reads(before, id, output.size);
      const text = readFileSync(join(before.directory(id), "output"));
      const record = readdirSync(before.directory(id));
      await before.close();
      // The next daemon has an archive.
      await using worker = await testWorker({
        stateDir: before.stateDir,
        archive: { kind: "directory", path: files.path },
        logCompress,
      });
      await moved(worker, id);
      expect(readdirSync(worker.directory(id))).toEqual(record.filter((file) => file !== "output" && file !== "index"));
      expect(worker.query(id).log).toMatchObject({ kind: "archived", compressed: logCompress === "zstd" });
      expect(await reads(worker, id, output.size)).toEqual(wanted);
      for (let i = 0; i < 20; i++) {
        const at = randomInt(output.size);
        const { bytes } = await readAll(worker.stream(id, { position: { kind: "offset", offset: at } }));
        expect(bytes.equals(text.subarray(at))).toBe(true);
      }
      expect(worker.logged.filter((line) => line.startsWith("error"))).toEqual([]);
      expect(readdirSync(worker.stateDir).filter((file) => file.startsWith(".index"))).toEqual([]);
      await worker.close();
    },
  );

  test("has of a log past its limit what was kept, and no zeros for the rest", async () => {
    using files = testDirectory();
    await using before = await testWorker({ name: "w", logLimitBytes: MIB });
    const { id, output } = await finished(before, sh("seq 2000000"));
    expect(output.first).toBeGreaterThan(10 * MIB);
    const wanted = await reads(before, id, output.size);
    await before.close();
    const archive = { kind: "directory", path: files.path } as const;
    await using worker = await testWorker({ name: "w", stateDir: before.stateDir, logLimitBytes: MIB, archive });
    await moved(worker, id);
    const stored = join(files.path, "w", id);
    expect(readdirSync(stored).reduce((sum, file) => sum + statSync(join(stored, file)).size, 0)).toBeLessThan(MIB);
    expect(await reads(worker, id, output.size)).toEqual(wanted);
  });

  test("has logs that are compressed, and the worker's disk is pruned of the others alone", async () => {
    using files = testDirectory();
    const archive = { kind: "directory", path: files.path } as const;
    await using worker = await testWorker({ archive, logCompress: "zstd", logPrune: { count: 1, bytes: MIB } });
    const talks = sh("seq 100000");
    const [archived, own]: [string[], string[]] = [[], []];
    for (let i = 0; i < 3; i++) archived.push((await finished(worker, talks)).id);
    for (const id of archived) await moved(worker, id);
    for (let i = 0; i < 3; i++) {
      const { job } = await worker.start({ ...talks, log: { archive: false } });
      own.push((await worker.wait(job.id)).id);
    }
    for (const id of own.slice(0, 2)) await until("it is pruned", () => worker.query(id).log?.kind === "pruned");
    await until("the last is compressed", () => worker.query(own[2] ?? "").log?.kind === "compressed");
    const { text } = await readAll(worker.stream(own[2] ?? "", {}));
    for (const id of archived) {
      expect(worker.query(id).log).toMatchObject({ kind: "archived", compressed: true });
      expect((await readAll(worker.stream(id, {}))).text).toBe(text);
    }
  });

  test(
    "that is full keeps the logs here that it has no room for, and takes smaller ones",
    unless(noMounts),
    async () => {
      using files = testDirectory();
      using disk = smallDisk(join(files.path, "disk"), 4 * MIB);
      await using worker = await testWorker({ archive: { kind: "directory", path: disk.path }, ...QUICK });
      const large = await finished(worker, sh(`head -c ${6 * MIB} /dev/zero`));
      await until("it is told", () => worker.logged.some((line) => /logs cannot be archived: ENOSPC/.test(line)));
      const small = await finished(worker, sh(`head -c ${2 * MIB} /dev/zero`));
      await moved(worker, small.id);
      expect(worker.query(large.id).log?.kind).toBe("kept");
      expect((await readAll(worker.stream(large.id, {}))).bytes.length).toBe(6 * MIB);
    },
  );

  test("is below the job's worker's name, or that of its journal", async () => {
    using files = testDirectory();
    const archive = { kind: "directory", path: files.path } as const;
    await using named = await testWorker({ name: "w1", archive });
    const one = await finished(named, run("echo", "one"));
    await moved(named, one.id);
    expect(readFileSync(join(files.path, "w1", one.id, "output"), "utf8")).toBe("one\n");
    await named.close();
    // Another name changes nothing for the jobs that there are.
    await using renamed = await testWorker({ stateDir: named.stateDir, name: "w2", archive });
    expect((await readAll(renamed.stream(one.id, {}))).text).toBe("one\n");
    const two = await finished(renamed, run("echo", "two"));
    await moved(renamed, two.id);
    expect(readdirSync(files.path).toSorted()).toEqual(["w1", "w2"]);
    await using nameless = await testWorker({ archive });
    const three = await finished(nameless, run("echo", "three"));
    await moved(nameless, three.id);
    expect(readdirSync(files.path)).toHaveLength(3);
  });

  test("that is away disturbs nothing but who wants to read from it, and what waits is moved when it is back", async () => {
    using files = testDirectory();
    const [path, away] = [join(files.path, "archive"), join(files.path, "away")];
    mkdirSync(path);
    await using worker = await testWorker({ archive: { kind: "directory", path }, ...QUICK });
    const { id } = await finished(worker, run("echo", "before"));
    await moved(worker, id);
    renameSync(path, away);
    expect(await refused(() => readAll(worker.stream(id, {})))).toMatchObject({
      code: "unavailable",
      message: expect.stringContaining("the archive does not give"),
    });
    const { id: later } = await finished(worker, run("echo", "later"));
    await until("it is told", () => worker.logged.some((line) => line.startsWith("error: logs cannot be archived")));
    expect((await readAll(worker.stream(later, {}))).text).toBe("later\n");
    renameSync(away, path);
    await moved(worker, later);
    expect((await readAll(worker.stream(later, {}))).text).toBe("later\n");
    expect((await readAll(worker.stream(id, {}))).text).toBe("before\n");
    expect(worker.logged).toContain("info: logs can be archived again");
  });

  test("is named to who asks a daemon that is not told of it", async () => {
    using files = testDirectory();
    await using worker = await testWorker({ archive: { kind: "directory", path: files.path } });
    const { id } = await finished(worker, run("echo", "here"));
    await moved(worker, id);
    await worker.close();
    await using without = await testWorker({ stateDir: worker.stateDir });
    expect(await refused(() => without.stream(id, {}))).toMatchObject({
      code: "unavailable",
      message: expect.stringContaining("--archive"),
    });
  });

  test("takes a log from under its reader, who reads on", async () => {
    using files = testDirectory();
    const [path, away] = [join(files.path, "archive"), join(files.path, "away")];
    mkdirSync(away);
    await using worker = await testWorker({ archive: { kind: "directory", path }, ...QUICK });
    const { id, output } = await finished(worker, sh(TALKS));
    const stream = worker.stream(id, {});
    const first = await stream.next();
    renameSync(away, path);
    await moved(worker, id);
    const { bytes } = await readAll(stream);
    expect(bytes.length).toBe(output.size - (first.done || first.value.kind === "gap" ? 0 : first.value.bytes.length));
  });

  test("leaves nothing here of a log that a daemon has archived and then died", async () => {
    using files = testDirectory();
    const archive = { kind: "directory", path: files.path } as const;
    await using worker = await testWorker({ name: "w", archive });
    const { id } = await finished(worker, run("echo", "said"));
    await moved(worker, id);
    await worker.close();
    // As it is between the journal's word and the removal of the last file.
    copyFileSync(join(files.path, "w", id, "output"), join(worker.directory(id), "output"));
    const journal = new DatabaseSync(join(worker.stateDir, "journal.db"));
    journal.exec("UPDATE jobs SET log_due = 1");
    journal.close();
    await using next = await testWorker({ stateDir: worker.stateDir, archive });
    await moved(next, id);
    expect((await readAll(next.stream(id, {}))).text).toBe("said\n");
    expect(next.logged.filter((line) => line.startsWith("error"))).toEqual([]);
  });

  test("is hidden from jobs of the worker's own user", needsRoot, async () => {
    using files = testDirectory();
    await using worker = await testWorker({ allowRoot: true, archive: { kind: "directory", path: files.path } });
    const { id } = await finished(worker, run("echo", "secret"));
    await moved(worker, id);
    expect(
      (await finished(worker, { ...sh(`exec 2> /dev/null; find ${files.path} -type f`), user: "root" })).text,
    ).toBe("");
  });

  test("is left with no descriptor by readers who go in the middle", async () => {
    using files = testDirectory();
    await using worker = await testWorker({ archive: { kind: "directory", path: files.path } });
    const { id } = await finished(worker, sh(TALKS));
    await moved(worker, id);
    for (let i = 0; i < 20; i++) for await (const _piece of worker.stream(id, {})) break;
    const held = openDescriptors().filter(({ target }) => /\.index-|\/output$/.test(target));
    expect(held).toEqual([]);
  });
});

describe.each(servers)("an archive on $name", ({ name, checksums, start }) => {
  if (!start) {
    test("keeps logs", unless(`${name} is built with Go, which is not here`), () => {});
    return;
  }
  let server: S3Server;
  let proxy: Proxy;
  beforeAll(async () => {
    server = await start();
  }, BUILD_MS);
  afterAll(() => server[Symbol.asyncDispose]());

  /** A worker's options for a place of its own, behind a proxy of its own. */
  async function place(
    stack: AsyncDisposableStack,
  ): Promise<Pick<WorkerOptions, "archive" | "archivePauses" | "name"> & { prefix: string }> {
    credentials();
    proxy = stack.use(await startProxy(server.port));
    const prefix = crypto.randomUUID();
    const endpoint = `http://127.0.0.1:${proxy.port}`;
    return { ...QUICK, name: "w", prefix, archive: { kind: "s3", bucket: BUCKET, prefix, endpoint, silenceMs: 500 } };
  }

  test.each(["off", "zstd"] as const)(
    "has what a job said, with compression %s, which streams as before",
    async (logCompress) => {
      await using stack = new AsyncDisposableStack();
      const { prefix, ...options } = await place(stack);
      await using before = await testWorker({ name: "w" });
      const { id, output } = await finished(before, sh(TALKS));
      expect(output.size).toBeGreaterThan(PART_BYTES);
      const wanted = await reads(before, id, output.size);
      const text = readFileSync(join(before.directory(id), "output"));
      await before.close();
      await using worker = await testWorker({ ...options, logCompress, stateDir: before.stateDir });
      await moved(worker, id);
      const stored = readFileSync(server.object(`${prefix}/w/${id}/output${logCompress === "zstd" ? ".zst" : ""}`));
      expect((logCompress === "zstd" ? zstdDecompressSync(stored) : stored).equals(text)).toBe(true);
      expect(await reads(worker, id, output.size)).toEqual(wanted);
    },
  );

  test("takes no log from this disk until it is known to be there, as it was: not removed, cut short or changed behind its back", async () => {
    await using stack = new AsyncDisposableStack();
    const { prefix, ...options } = await place(stack);
    await using worker = await testWorker(options);
    const damages: ((object: string) => void)[] = [
      rmSync,
      (object) => truncateSync(object, 4),
      // A server with checksums of its own answers for its disk.
      ...(checksums ? [] : [(object: string) => writeFileSync(object, "Said\n")]),
    ];
    const tries: string[][] = [];
    proxy.onRequest = (line) => {
      const [, id = ""] = /^HEAD .+\/([^/]+)\/output /.exec(line) ?? [];
      if (id === "") return;
      tries.push(local(worker, id));
      damages[tries.length - 1]?.(server.object(`${prefix}/w/${id}/output`));
    };
    const { id } = await finished(worker, run("echo", "said"));
    await moved(worker, id);
    expect(tries).toEqual([...damages, undefined].map(() => ["index", "output"]));
    expect(readFileSync(server.object(`${prefix}/w/${id}/output`), "utf8")).toBe("said\n");
    expect(worker.logged.filter((line) => line.startsWith("error"))).toHaveLength(damages.length);
  });

  test.each(["refuse", "cut", "stall"] as const)(
    "that is met with '%s' gets all logs once it is back",
    async (weather) => {
      await using stack = new AsyncDisposableStack();
      const { prefix, ...options } = await place(stack);
      await using worker = await testWorker(options);
      const { id: early } = await finished(worker, run("echo", "early"));
      await moved(worker, early);
      await proxy.set(weather, 100);
      const ids: string[] = [];
      for (let i = 0; i < 3; i++) ids.push((await finished(worker, run("echo", `log ${i}`))).id);
      await until("it is told", () => worker.logged.some((line) => line.startsWith("error: logs cannot be archived")));
      expect(await refused(() => readAll(worker.stream(early, {})))).toMatchObject({ code: "unavailable" });
      for (const [i, id] of ids.entries()) expect((await readAll(worker.stream(id, {}))).text).toBe(`log ${i}\n`);
      await proxy.set("fair");
      for (const id of ids) await moved(worker, id);
      for (const [i, id] of ids.entries()) {
        expect(readFileSync(server.object(`${prefix}/w/${id}/output`), "utf8")).toBe(`log ${i}\n`);
        expect((await readAll(worker.stream(id, {}))).text).toBe(`log ${i}\n`);
      }
    },
  );

  test("that is gone in the middle of a stream ends that stream, and no other", async () => {
    await using stack = new AsyncDisposableStack();
    const { prefix: _prefix, ...options } = await place(stack);
    await using worker = await testWorker(options);
    const { id, output } = await finished(worker, sh(TALKS));
    await moved(worker, id);
    const stream = worker.stream(id, {});
    await stream.next();
    await proxy.set("refuse");
    expect(await refused(() => readAll(stream))).toMatchObject({ code: "unavailable" });
    const { id: here } = await finished(worker, run("echo", "here"));
    expect((await readAll(worker.stream(here, {}))).text).toBe("here\n");
    await proxy.set("fair");
    expect((await readAll(worker.stream(id, {}))).bytes.length).toBe(output.size);
  });

  test("that refuses a secret keeps its reason in the log, and gets the log from the next daemon", async () => {
    await using stack = new AsyncDisposableStack();
    const { prefix, ...options } = await place(stack);
    credentials("wrong");
    await using worker = await testWorker(options);
    const { id } = await finished(worker, run("echo", "said"));
    await until("it was tried again", () => proxy.requests.length > 3);
    await worker.close();
    const told = worker.logged.filter((line) => line.startsWith("error"));
    expect(told).toEqual([expect.stringMatching(/^error: logs cannot be archived: SignatureDoesNotMatch: .*\(403\)$/)]);
    expect(local(worker, id)).toEqual(["index", "output"]);
    credentials();
    await using next = await testWorker({ ...options, stateDir: worker.stateDir });
    await moved(next, id);
    expect(readFileSync(server.object(`${prefix}/w/${id}/output`), "utf8")).toBe("said\n");
  });

  test("is gone on with by the next daemon, wherever the last one was killed", async () => {
    await using stack = new AsyncDisposableStack();
    const { prefix, ...options } = await place(stack);
    await using before = await testWorker({ name: "w" });
    const { id, output } = await finished(before, sh(TALKS));
    await before.close();
    const { stateDir } = before;
    let kills = 0;
    for (let done = false; !done; kills++) {
      const seen = proxy.requests.length;
      await proxy.set("fair");
      const killed = Promise.withResolvers<void>();
      // Each daemon gets one request further than the one before.
      proxy.onRequest = async () => {
        if (proxy.requests.length - seen <= kills) return;
        await proxy.set("stall");
        killed.resolve();
      };
      await using daemon = await testDaemon({ ...options, stateDir });
      const output = join(stateDir, "jobs", id, "output");
      done = await Promise.race([killed.promise.then(() => false), until("it is moved", () => !existsSync(output))]);
      await daemon.kill();
    }
    expect(kills).toBeGreaterThan(6);
    proxy.onRequest = () => {};
    await proxy.set("fair");
    await using last = await testWorker({ ...options, stateDir });
    const { bytes } = await readAll(last.stream(id, {}));
    expect(bytes.length).toBe(output.size);
    expect(bytes.equals(readFileSync(server.object(`${prefix}/w/${id}/output`)))).toBe(true);
  });
});
