import { createHash, randomBytes } from "node:crypto";
import { closeSync, openSync, readFileSync, rmSync, statSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { SPARE } from "../supervisor/spare.ts";
import {
  finished,
  open,
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
import { compressLog } from "./compress.ts";
import { HEADER_BYTES, logOf, RECORD_BYTES, type Source } from "./log.ts";
import { type Live, type Position, readOutput } from "./reader.ts";

const MIB = 1024 * 1024;
const CHUNK_BYTES = 256 * 1024;

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** This process's descriptors of jobs' files, without those of spare supervisors, and its inotify watches. */
function held({ stateDir }: TestWorker): { readonly files: number; readonly watches: number } {
  const descriptors = openDescriptors();
  const watches = descriptors
    .filter(({ target }) => target === "anon_inode:inotify")
    .map(({ fd }) => readFileSync(`/proc/self/fdinfo/${fd}`, "utf8").split("inotify wd:").length - 1);
  return {
    files: descriptors.filter(({ target }) => target.startsWith(`${stateDir}/jobs/`) && !target.includes(SPARE)).length,
    watches: watches.reduce((sum, count) => sum + count, 0),
  };
}

/** Resolves when nothing is held; libuv drops a watch that is closed in its own callback a moment later. */
async function released(worker: TestWorker): Promise<void> {
  await until("all descriptors and watches are released", () => held(worker).files + held(worker).watches === 0);
}

/** Writes with a pause after each piece, so that each is a piece of its own in the log: "out:TEXT" or "err:TEXT". */
function pieces(...texts: string[]): string {
  return texts
    .map((text) => `printf '${text.slice(4)}'${text.startsWith("err:") ? " >&2" : ""}; sleep 0.01`)
    .join("; ");
}

/** What becomes of an ended job's log, before it is read. */
const forms: [string, (worker: TestWorker, id: string) => Promise<unknown>][] = [
  ["as it was written", async () => {}],
  ["that has been compressed", (worker, id) => compressLog(worker.directory(id), new AbortController().signal, -1)],
];

describe.each(forms)("of a log %s:", (_form, put) => {
  /** A finished job's id, with this output. */
  async function job(worker: TestWorker, script: string, ...args: string[]): Promise<string> {
    const { id } = await finished(worker, sh(script, ...args));
    await put(worker, id);
    return id;
  }

  describe("pieces", () => {
    test("of stdout and stderr come apart and in the order of their writing, with offsets that add up and times that do not go back", async () => {
      await using worker = await testWorker();
      const id = await job(worker, pieces("out:one\\n", "err:two\\n", "out:three\\n", "err:four"));
      const { pieces: read, job: end, offset, text } = await readAll(worker.stream(id, { times: true }));
      expect(read.map(({ source, offset: at, text: said }) => [source, at, said])).toEqual([
        ["stdout", 0, "one\n"],
        ["stderr", 4, "two\n"],
        ["stdout", 8, "three\n"],
        ["stderr", 14, "four"],
      ]);
      expect(text).toBe("one\ntwo\nthree\nfour");
      expect(offset).toBe(18);
      expect(end).toMatchObject({ id, state: "ended", output: { size: 18, first: 0, dropped: 0 } });
      const times = read.map(({ timeMs }) => timeMs);
      expect(times).toEqual(times.toSorted((a, b) => a - b));
      for (const time of times) {
        expect(time).toBeGreaterThanOrEqual((end.startedAt?.getTime() ?? Infinity) - 1);
        expect(time).toBeLessThanOrEqual((end.endedAt?.getTime() ?? 0) + 1);
      }
    });

    test("of one source can be had alone, at the offsets that they have among all", async () => {
      await using worker = await testWorker();
      const id = await job(worker, pieces("out:one\\n", "err:two\\n", "out:three\\n", "err:four"));
      const offsets = async (source: Source) =>
        (await readAll(worker.stream(id, { source, times: true }))).pieces.map(({ offset, text }) => [offset, text]);
      expect(await offsets("stdout")).toEqual([
        [0, "one\n"],
        [8, "three\n"],
      ]);
      expect(await offsets("stderr")).toEqual([
        [4, "two\n"],
        [14, "four"],
      ]);
    });

    test("are joined while source and wish for times allow it", async () => {
      await using worker = await testWorker();
      const id = await job(worker, pieces("out:a", "out:b", "out:c"));
      expect((await readAll(worker.stream(id, {}))).pieces.map(({ text }) => text)).toEqual(["abc"]);
      expect((await readAll(worker.stream(id, { times: true }))).pieces.map(({ text }) => text)).toEqual([
        "a",
        "b",
        "c",
      ]);
    });

    test("are 256 KiB at most, and binary output comes as it was", async () => {
      await using worker = await testWorker();
      using files = testDirectory();
      const bytes = randomBytes(700_000);
      writeFileSync(join(files.path, "bytes"), bytes);
      const id = await job(worker, 'cat "$0"', join(files.path, "bytes"));
      const read = await readAll(worker.stream(id, {}));
      expect(sha256(read.bytes)).toBe(sha256(bytes));
      expect(Math.max(...read.pieces.map(({ text }) => text.length))).toBe(CHUNK_BYTES);
    });

    test("are smaller for all while many read at once, and large again for one alone", async () => {
      await using worker = await testWorker();
      const id = await job(worker, `head -c ${4 * MIB} /dev/zero`);
      const nextLength = async (reader: ReturnType<typeof worker.stream>): Promise<number> => {
        const { value } = await reader.next();
        return "bytes" in value ? value.bytes.length : 0;
      };
      const readers = Array.from({ length: 256 }, () => worker.stream(id, {}));
      for (let i = 0; i < 3; i++) await Promise.all(readers.map(nextLength)); // all have begun, and have been told
      const lengths = await Promise.all(readers.map(nextLength));
      expect(new Set(lengths)).toEqual(new Set([(32 * MIB) / 2 / readers.length]));
      await Promise.all(readers.map((reader) => reader.return({ offset: 0, job: worker.query(id) })));
      const alone = worker.stream(id, {});
      expect(await nextLength(alone)).toBe(CHUNK_BYTES);
      await alone.return({ offset: 0, job: worker.query(id) });
    });

    test("of a job that said nothing are none", async () => {
      await using worker = await testWorker();
      const id = await job(worker, "true");
      for (const position of [undefined, { kind: "tail-lines", count: 5 }, { kind: "tail-bytes", count: 5 }] as const)
        expect(await readAll(worker.stream(id, { ...(position && { position }) }))).toMatchObject({
          text: "",
          gaps: [],
          offset: 0,
        });
    });
  });

  describe("an offset", () => {
    test("is where a reader resumes, at any byte, with or without a source", async () => {
      await using worker = await testWorker();
      const id = await job(worker, pieces("out:012", "err:345", "out:6789"));
      for (let offset = 0; offset <= 10; offset++) {
        const position = { kind: "offset", offset } as const;
        expect((await readAll(worker.stream(id, { position }))).text).toBe("0123456789".slice(offset));
        expect((await readAll(worker.stream(id, { position, source: "stderr" }))).text).toBe(
          "345".slice(Math.max(0, offset - 3)),
        );
      }
    });

    test("past the end gives nothing, and itself to resume from", async () => {
      await using worker = await testWorker();
      const id = await job(worker, "printf abc");
      const position = { kind: "offset", offset: 7 } as const;
      expect(await readAll(worker.stream(id, { position, follow: true }))).toMatchObject({
        text: "",
        gaps: [],
        offset: 7,
      });
    });

    test("that a reader was told at its end brings the rest and no byte twice, however often it stops", async () => {
      await using worker = await testWorker();
      const { job: started } = await worker.start(sh("for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.01; done"));
      let text = "";
      let state = "running";
      for (let offset = 0; state !== "ended";) {
        const stopped = AbortSignal.any([AbortSignal.timeout(7)]);
        const read = await readAll(
          worker.stream(started.id, { position: { kind: "offset", offset }, follow: true, signal: stopped }),
        );
        ({ offset } = read);
        text += read.text;
        state = stopped.aborted ? "running" : read.job.state;
      }
      expect(text).toBe("1\n2\n3\n4\n5\n6\n7\n8\n");
    });

    test.each<Position>([
      { kind: "offset", offset: -1 },
      { kind: "offset", offset: 0.5 },
      { kind: "offset", offset: NaN },
      { kind: "offset", offset: 2 ** 60 },
      { kind: "tail-bytes", count: -1 },
      { kind: "tail-lines", count: Infinity },
    ])("that is none is refused: %o", async (position) => {
      await using worker = await testWorker();
      const id = await job(worker, "true");
      expect(await refused(() => worker.stream(id, { position }))).toMatchObject({
        code: "invalid",
        field: "position",
      });
    });
  });

  describe("a tail", () => {
    const tails = async (
      worker: TestWorker,
      id: string,
      kind: "tail-bytes" | "tail-lines",
      counts: number[],
      source?: Source,
    ) => {
      const read = counts.map((count) =>
        readAll(worker.stream(id, { position: { kind, count }, ...(source && { source }) })),
      );
      return (await Promise.all(read)).map(({ text }) => text);
    };

    test("of lines counts a last line without its newline, and not the newline of one that has it", async () => {
      await using worker = await testWorker();
      const whole = await job(worker, "printf 'a\\nb\\nc\\n'");
      expect(await tails(worker, whole, "tail-lines", [0, 1, 2, 3, 4, 1000])).toEqual([
        "",
        "c\n",
        "b\nc\n",
        "a\nb\nc\n",
        "a\nb\nc\n",
        "a\nb\nc\n",
      ]);
      const torn = await job(worker, "printf 'a\\nb\\nc'");
      expect(await tails(worker, torn, "tail-lines", [0, 1, 2, 3, 4])).toEqual(["", "c", "b\nc", "a\nb\nc", "a\nb\nc"]);
      const blank = await job(worker, "printf '\\n\\n\\n'");
      expect(await tails(worker, blank, "tail-lines", [1, 2, 3, 4])).toEqual(["\n", "\n\n", "\n\n\n", "\n\n\n"]);
    });

    test("of bytes is so many, or all there are", async () => {
      await using worker = await testWorker();
      const id = await job(worker, pieces("out:012", "err:345", "out:6789"));
      expect(await tails(worker, id, "tail-bytes", [0, 1, 4, 5, 10, 11])).toEqual([
        "",
        "9",
        "6789",
        "56789",
        "0123456789",
        "0123456789",
      ]);
    });

    test("counts only what is of the source that is asked for", async () => {
      await using worker = await testWorker();
      const id = await job(worker, pieces("out:a\\nb\\n", "err:x\\ny", "out:c\\n", "err:z\\n"));
      expect(await tails(worker, id, "tail-lines", [1, 2, 3, 4], "stdout")).toEqual([
        "c\n",
        "b\nc\n",
        "a\nb\nc\n",
        "a\nb\nc\n",
      ]);
      expect(await tails(worker, id, "tail-lines", [1, 2, 3], "stderr")).toEqual(["yz\n", "x\nyz\n", "x\nyz\n"]);
      expect(await tails(worker, id, "tail-bytes", [1, 3, 100], "stdout")).toEqual(["\n", "\nc\n", "a\nb\nc\n"]);
      expect(await tails(worker, id, "tail-bytes", [2, 4], "stderr")).toEqual(["z\n", "\nyz\n".slice(0, 4)]);
    });

    test("reaches back over several windows of 256 KiB, of lines longer than one too", async () => {
      await using worker = await testWorker();
      const lines = Array.from({ length: 90_000 }, (_, i) => `line ${i} ${"x".repeat(i % 10)}\n`);
      using files = testDirectory();
      writeFileSync(join(files.path, "lines"), lines.join(""));
      const long = `${"y".repeat(600_000)}\n`;
      writeFileSync(join(files.path, "long"), `first\n${long}last\n`);
      const id = await job(worker, 'cat "$0"', join(files.path, "lines"));
      const counts = [1, 50_000, 89_999, 90_000, 90_001];
      const expected = counts.map((count) => lines.slice(-count).join(""));
      expect((await tails(worker, id, "tail-lines", counts)).map((text) => text.length)).toEqual(
        expected.map((text) => text.length),
      );
      expect(await tails(worker, id, "tail-lines", counts)).toEqual(expected);
      const bytes = [CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 1];
      expect((await tails(worker, id, "tail-bytes", bytes)).map((text) => text.length)).toEqual(bytes);
      const other = await job(worker, 'cat "$0"', join(files.path, "long"));
      expect(await tails(worker, other, "tail-lines", [2, 3])).toEqual([`${long}last\n`, `first\n${long}last\n`]);
    });

    test("goes on with what is written next when it follows", async () => {
      await using worker = await testWorker();
      using files = testDirectory();
      const gate = join(files.path, "gate");
      const { id } = await startReady(
        worker,
        sh(`echo one; echo two; until [ -e "$0" ]; do sleep 0.01; done; echo three`, gate),
      );
      await until("both lines are there", () => worker.query(id).output.size === 8);
      const stream = worker.stream(id, { position: { kind: "tail-lines", count: 1 }, follow: true });
      expect((await stream.next()).value).toMatchObject({ kind: "chunk", offset: 4 });
      open(gate);
      expect((await readAll(stream)).text).toBe("three\n");
    });
  });
});

test("a reader that follows nothing has all of a job that ends meanwhile, if it tells of the end", async () => {
  await using worker = await testWorker();
  using files = testDirectory();
  const gate = join(files.path, "gate");
  const { id } = await startReady(worker, sh(`echo ready; until [ -e "$0" ]; do sleep 0.01; done; echo more`, gate));
  const stream = worker.stream(id, {});
  expect((await stream.next()).value).toMatchObject({ offset: 0 });
  open(gate);
  await worker.wait(id);
  const { text, job, offset } = await readAll(stream);
  expect([text, job.state, offset]).toEqual(["more\n", "ended", 11]);
});

describe("a follower", () => {
  test("that joins before, during or after the run gets the same 8 MiB and one end, 20 of them at once", async () => {
    await using worker = await testWorker();
    using files = testDirectory();
    const [bytes, first, second] = ["bytes", "first", "second"].map((name) => join(files.path, name)) as [
      string,
      string,
      string,
    ];
    const random = randomBytes(8 * MIB);
    writeFileSync(bytes, random);
    const wait = (gate: string) => `until [ -e "${gate}" ]; do sleep 0.01; done`;
    const script = `${wait(first)}; head -c ${4 * MIB} "$0"; ${wait(second)}; tail -c +${4 * MIB + 1} "$0"`;
    const { job: started } = await worker.start(sh(script, bytes));
    const join7 = (): Promise<{ readonly sum: string; readonly ended: boolean; readonly size: number }>[] =>
      Array.from({ length: 7 }, async () => {
        const hash = createHash("sha256");
        const stream = worker.stream(started.id, { follow: true });
        for (;;) {
          const { done, value } = await stream.next();
          if (done) return { sum: hash.digest("hex"), ended: value.job.state === "ended", size: value.offset };
          if (value.kind === "gap") throw new Error("no gap is here");
          hash.update(value.bytes);
        }
      });
    const before = join7();
    open(first);
    await until("half of it is there", () => worker.query(started.id).output.size === 4 * MIB);
    const during = join7();
    open(second);
    await worker.wait(started.id);
    const after = join7().slice(1);
    const reads = await Promise.all([...before, ...during, ...after]);
    expect(reads).toHaveLength(20);
    expect(new Set(reads.map((read) => JSON.stringify(read)))).toEqual(
      new Set([JSON.stringify({ sum: sha256(random), ended: true, size: 8 * MIB })]),
    );
    await released(worker);
  });

  test("is woken by what is written, line by line", async () => {
    await using worker = await testWorker();
    using files = testDirectory();
    const script = `for i in 0 1 2 3 4; do echo $i; until [ -e "$0$i" ]; do sleep 0.01; done; done`;
    const { job: started } = await worker.start(sh(script, join(files.path, "gate")));
    let next = 0;
    for await (const piece of worker.stream(started.id, { follow: true })) {
      if (piece.kind === "gap") throw new Error("no gap is here");
      expect(piece.bytes.toString()).toBe(`${next}\n`);
      open(join(files.path, `gate${next++}`));
    }
    expect(next).toBe(5);
  });

  test("is woken though the kernel has dropped what told of it, because others wrote so much", async () => {
    await using worker = await testWorker();
    using files = testDirectory();
    const gate = join(files.path, "gate");
    const quiet = await startReady(
      worker,
      sh('echo ready; until [ -e "$0" ]; do sleep 0.01; done; echo more; exec sleep 1000', gate),
    );
    const loud = [await startReady(worker, waits), await startReady(worker, waits)];
    const abort = new AbortController();
    const stream = worker.stream(quiet.id, { follow: true, signal: abort.signal });
    expect((await stream.next()).value).toMatchObject({ kind: "chunk", offset: 0 });
    const more = stream.next();
    const others = loud.map(({ id }) => readAll(worker.stream(id, { follow: true, signal: abort.signal })));
    await until("all three are followed", () => held(worker).watches === 3);
    // Nothing is taken from the queue while this goes on without a pause. An event like the last one takes no place.
    const outputs = loud.map(({ id }) => openSync(join(worker.directory(id), "output"), "r+"));
    const places = Number(readFileSync("/proc/sys/fs/inotify/max_queued_events", "utf8"));
    for (let i = 0; i <= places; i++) for (const output of outputs.slice(i % 2, (i % 2) + 1)) writeSync(output, "r", 0);
    for (const output of outputs) closeSync(output);
    open(gate);
    while (statSync(join(worker.directory(quiet.id), "output")).size < "ready\nmore\n".length);
    expect((await more).value).toMatchObject({ kind: "chunk", offset: 6 });
    abort.abort();
    await Promise.all([...others, stream.return(undefined as never)]);
  });

  test("that is abandoned frees its descriptors and its watch, at whatever point", async () => {
    await using worker = await testWorker();
    const { id } = await startReady(worker, waits);
    await released(worker);
    for (let i = 0; i < 10; i++) {
      await worker.stream(id, { follow: true }).return({ offset: 0, job: worker.query(id) });
      for await (const piece of worker.stream(id, { follow: true })) if (piece.kind === "chunk") break;
      const abort = new AbortController();
      const idle = readAll(worker.stream(id, { follow: true, signal: abort.signal }));
      await until("it follows", () => held(worker).watches === 1 && held(worker).files === 2);
      abort.abort();
      expect(await idle).toMatchObject({ text: "ready\n", offset: 6, job: { state: "running" } });
      expect(await readAll(worker.stream(id, { follow: true, signal: abort.signal }))).toMatchObject({ text: "" });
      const thrown = worker.stream(id, { follow: true });
      await thrown.next();
      await expect(thrown.throw(new Error("the consumer's"))).rejects.toThrow("the consumer's");
    }
    await released(worker);
  });

  test("is let go, with where to resume, when the worker closes", async () => {
    await using worker = await testWorker();
    const { id } = await startReady(worker, waits);
    const following = readAll(worker.stream(id, { follow: true }));
    await until("it follows", () => held(worker).watches === 1);
    await worker.close();
    expect(await following).toMatchObject({ text: "ready\n", offset: 6, job: { id, state: "running" } });
    await released(worker);
    await using next = await testWorker({ stateDir: worker.stateDir });
    expect(next.query(id).state).toBe("running");
  });

  test("of 1,000 costs, while idle, no CPU and no timer, and no watch of its own", async () => {
    await using worker = await testWorker();
    const { id } = await startReady(worker, waits);
    const timers = (): number =>
      process.getActiveResourcesInfo().filter((kind) => kind === "Timeout" || kind === "Immediate").length;
    const timersBefore = timers();
    const abort = new AbortController();
    const followers = Array.from({ length: 1000 }, () =>
      readAll(worker.stream(id, { follow: true, signal: abort.signal })),
    );
    await until("all follow", () => held(worker).files === 2000);
    // A job is the clock: this process has no timer of its own. The least of four counts, for vitest is here too.
    const [spentUs, timersThen]: [number[], number[]] = [[], []];
    for (let i = 0; i < 4; i++) {
      const { job: clock } = await worker.start(run("sleep", "0.3"));
      const ended = worker.wait(clock.id);
      const before = process.cpuUsage();
      timersThen.push(timers());
      await ended;
      const { user, system } = process.cpuUsage(before);
      spentUs.push(user + system);
    }
    expect(Math.min(...spentUs)).toBeLessThan(15_000);
    expect(Math.min(...timersThen)).toBeLessThanOrEqual(timersBefore);
    expect(held(worker).watches).toBe(1);
    abort.abort();
    expect((await Promise.all(followers)).every(({ text }) => text === "ready\n")).toBe(true);
    await released(worker);
  });
});

test.each([
  { source: "stdout", most: 64 },
  { source: undefined, most: 64 },
] as const)(
  "a tail of one line, of a log of 200 GiB, reads the end of it alone ($source)",
  async ({ source, most }) => {
    const [pieces, pieceBytes, line] = [3200, 64 * 2 ** 20, 64] as const;
    const size = pieces * pieceBytes;
    const index = Buffer.alloc(HEADER_BYTES + pieces * RECORD_BYTES);
    index.write("jobslog1", 0, "latin1");
    for (let i = 0; i < pieces; i++) {
      index.writeUIntLE(i * pieceBytes, HEADER_BYTES + i * RECORD_BYTES, 6);
      index.writeUInt16LE(1, HEADER_BYTES + i * RECORD_BYTES + 6);
      index.writeUIntLE(1_790_000_000_000 + i, HEADER_BYTES + i * RECORD_BYTES + 8, 6);
    }
    const read = { index: 0, output: 0 };
    const log = logOf(
      {
        size: () => index.length,
        read(buffer, offset) {
          read.index++;
          return index.copy(buffer, 0, offset);
        },
      },
      {
        size: () => size,
        read(buffer, offset) {
          read.output += buffer.length;
          buffer.fill("x");
          for (let at = line - 1 - (offset % line); at < buffer.length; at += line) buffer[at] = 0x0a;
          return buffer.length;
        },
      },
    );
    const live: Live = { ended: () => true, subscribe: () => ({ [Symbol.dispose]() {} }) };
    const position = { kind: "tail-lines", count: 1 } as const;
    const found = [];
    for await (const piece of readOutput(log, live, { position, ...(source && { source }) })) found.push(piece.offset);
    expect(found).toEqual([size - line]);
    expect(read.output).toBeLessThanOrEqual(256 * 1024 + line);
    expect(read.index).toBeLessThanOrEqual(most);
  },
);

describe("a tail that has a gap of 64 TiB before it", () => {
  /** stdout at 0 and after the gap, ten bytes each. */
  const starts = [0, 10, 2 ** 46];
  const size = 2 ** 46 + 10;
  const index = Buffer.alloc(HEADER_BYTES + starts.length * RECORD_BYTES);
  index.write("jobslog1", 0, "latin1");
  for (const [i, start] of starts.entries()) {
    index.writeUIntLE(start, HEADER_BYTES + i * RECORD_BYTES, 6);
    index.writeUInt16LE(i % 2 === 0 ? 1 : 0, HEADER_BYTES + i * RECORD_BYTES + 6);
    index.writeUIntLE(1_790_000_000_000, HEADER_BYTES + i * RECORD_BYTES + 8, 6);
  }
  const log = logOf(
    {
      size: () => index.length,
      read: (buffer, offset) => (offset > index.length ? 0 : index.copy(buffer, 0, offset)),
    },
    {
      size: () => size,
      read(buffer) {
        buffer.fill("x");
        return buffer.length;
      },
    },
  );

  test.each(["tail-bytes", "tail-lines"] as const)("is found at once: %s", async (kind) => {
    const live: Live = { ended: () => true, subscribe: () => ({ [Symbol.dispose]() {} }) };
    const read = [];
    for await (const { kind: what, offset } of readOutput(log, live, { position: { kind, count: 15 } }))
      read.push([what, offset]);
    expect(read).toEqual(
      kind === "tail-bytes"
        ? [
            ["chunk", 5],
            ["gap", 10],
            ["chunk", 2 ** 46],
          ]
        : [
            ["chunk", 0],
            ["gap", 10],
            ["chunk", 2 ** 46],
          ],
    );
  });
});

describe("a log at its limit", () => {
  const LINE = "0123456789abcde\n";
  const floods = (bytes: number, then = "true"): ReturnType<typeof sh> =>
    sh(`yes 0123456789abcde | head -c ${bytes}; ${then}`);

  /** Whether these are the bytes that the flood has at `offset`. */
  function isFlood(bytes: Buffer, offset: number): boolean {
    const start = offset % LINE.length;
    const expected = LINE.repeat(Math.ceil((start + bytes.length) / LINE.length)).slice(start, start + bytes.length);
    return bytes.toString("latin1") === expected;
  }

  /** Every piece follows the one before, and every byte is what was written there. Returns what was lost. */
  async function check(
    stream: ReturnType<TestWorker["stream"]>,
    from: number,
    pause?: () => Promise<unknown>,
  ): Promise<{ lost: number; end: number }> {
    let lost = 0;
    let offset = from;
    for (;;) {
      const { done, value } = await stream.next();
      if (done) return { lost, end: value.offset };
      expect(value.offset).toBe(offset);
      if (value.kind === "gap") {
        expect(value.length).toBeGreaterThan(0);
        lost += value.length;
        offset += value.length;
      } else {
        expect(isFlood(value.bytes, offset)).toBe(true);
        offset += value.bytes.length;
      }
      await pause?.();
      pause = undefined;
    }
  }

  test.each(forms)(
    "%s, keeps the newest: readers, fast and slow, get no zeros ever, and are told of every byte that they missed",
    async (_form, put) => {
      await using worker = await testWorker({ logLimitBytes: MIB });
      const { job: started } = await worker.start(floods(32 * MIB));
      const follow = (pause?: () => Promise<unknown>) =>
        check(worker.stream(started.id, { follow: true, position: { kind: "offset", offset: 0 } }), 0, pause);
      const fast = Array.from({ length: 3 }, () => follow());
      const slow = Array.from({ length: 3 }, () => follow(() => worker.wait(started.id)));
      for (const { end } of await Promise.all(fast)) expect(end).toBe(32 * MIB);
      const { first, dropped, size } = worker.query(started.id).output;
      expect({ size, dropped }).toEqual({ size: 32 * MIB, dropped: first });
      for (const { lost, end } of await Promise.all(slow)) {
        expect(end).toBe(32 * MIB);
        expect(lost).toBeGreaterThan(28 * MIB);
      }
      await put(worker, started.id);
      const late = await readAll(worker.stream(started.id, { position: { kind: "offset", offset: 5 } }));
      expect(late.gaps).toEqual([{ kind: "gap", offset: 5, length: first - 5 }]);
      expect(late.bytes.length).toBe(size - first);
      expect((await readAll(worker.stream(started.id, {}))).gaps).toEqual([]);
      const all = await readAll(worker.stream(started.id, { position: { kind: "tail-lines", count: 1_000_000 } }));
      expect(isFlood(all.bytes, first)).toBe(true);
    },
  );

  test("keeps the newest within its limit on disk", async () => {
    await using worker = await testWorker({ logLimitBytes: MIB });
    const { id } = await finished(worker, floods(16 * MIB));
    const used = ["output", "index"].map((file) => statSync(join(worker.directory(id), file)).blocks * 512);
    expect(used.reduce((sum, bytes) => sum + bytes, 0)).toBeLessThanOrEqual(MIB + 4 * 4096);
    const { size, first } = worker.query(id).output;
    expect(size - first).toBeGreaterThan(MIB * 0.8);
  });

  test.each(forms)(
    "%s, keeps the oldest: what comes later is one gap, in its place, for readers, tails and followers",
    async (_form, put) => {
      await using worker = await testWorker({ logLimitBytes: MIB, logKeep: "oldest" });
      const { job: started } = await worker.start(floods(3 * MIB, "echo the last words >&2"));
      const following = readAll(worker.stream(started.id, { follow: true }));
      await worker.wait(started.id);
      const { output } = worker.query(started.id);
      const kept = output.size - output.dropped;
      expect(output).toEqual({ size: 3 * MIB + 15, first: 0, dropped: 3 * MIB + 15 - kept });
      expect(kept).toBeGreaterThan(MIB * 0.8);
      const followed = await following;
      await put(worker, started.id);
      const read = await readAll(worker.stream(started.id, {}));
      expect(read.gaps).toEqual([{ kind: "gap", offset: kept, length: output.dropped }]);
      expect(read.offset).toBe(output.size);
      expect(read.bytes.length).toBe(kept);
      expect(isFlood(read.bytes, 0)).toBe(true);
      expect(followed.bytes.equals(read.bytes)).toBe(true);
      expect(followed.gaps.reduce((sum, { length }) => sum + length, 0)).toBe(output.dropped);
      const tail = await readAll(worker.stream(started.id, { position: { kind: "tail-bytes", count: 100 } }));
      expect(tail.bytes.equals(read.bytes.subarray(-100))).toBe(true);
      expect(tail.gaps).toEqual(read.gaps);
    },
  );

  test.each([
    [1, /1048576 is the least/],
    [-1, /1048576 is the least/],
    [NaN, /1048576 is the least/],
  ])("is no less than 1 MiB: %d is refused", async (logLimitBytes, message) => {
    const error = await refused(() => testWorker({ logLimitBytes }));
    expect(error.code).toBe("invalid");
    expect(error.message).toMatch(message);
  });
});

test("a job that opens /dev/stdout and /dev/stderr anew writes to the same log and truncates nothing", async () => {
  await using worker = await testWorker();
  const { text } = await finished(
    worker,
    sh("echo one; sleep 0.01; echo two > /dev/stdout; sleep 0.01; echo three > /dev/stderr; sleep 0.01; echo four"),
  );
  expect(text).toBe("one\ntwo\nthree\nfour\n");
});

test("a log whose files are gone is not found, and says so", async () => {
  await using worker = await testWorker();
  const { id } = await finished(worker, run("echo", "x"));
  rmSync(worker.directory(id), { recursive: true });
  expect(await refused(() => worker.stream(id, {}))).toMatchObject({ code: "not-found" });
  expect(worker.query(id).output.size).toBe(2);
});
