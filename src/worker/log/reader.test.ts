import { randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import {
  finished,
  open,
  readAll,
  refused,
  sh,
  startReady,
  testDirectory,
  testWorker,
  type TestWorker,
  until,
} from "../testing/worker.ts";
import { type Source } from "./log.ts";
import { type Position } from "./reader.ts";
import { forms, sha256 } from "./testing/forms.ts";

const MIB = 1024 * 1024;
const CHUNK_BYTES = 256 * 1024;

/** Runs a job that writes "out:TEXT" or "err:TEXT", each of which is a piece of its own in the log. Resolves to its id. */
async function says(worker: TestWorker, ...texts: string[]): Promise<string> {
  using files = testDirectory();
  const gate = (i: number): string => join(files.path, String(i));
  const lines = texts.map((text, i) => {
    const printf = `printf '${text.slice(4)}'${text.startsWith("err:") ? " >&2" : ""}`;
    return `until [ -e ${gate(i)} ]; do sleep 0.005; done; ${printf}`;
  });
  const { job } = await worker.start(sh(lines.join("; ")));
  let size = 0;
  for (const [i, text] of texts.entries()) {
    open(gate(i));
    size += text.slice(4).replaceAll("\\n", "\n").length;
    await until(`${text} is in the log`, () => worker.query(job.id).output.size === size);
  }
  await worker.wait(job.id);
  return job.id;
}

describe.each(forms)("of a log %s:", (_form, put) => {
  /** A finished job's id, with this output. */
  async function job(worker: TestWorker, script: string, ...args: string[]): Promise<string> {
    const { id } = await finished(worker, sh(script, ...args));
    await put(worker, id);
    return id;
  }

  /** The same, of a job whose pieces are apart. */
  async function saying(worker: TestWorker, ...texts: string[]): Promise<string> {
    const id = await says(worker, ...texts);
    await put(worker, id);
    return id;
  }

  describe("pieces", () => {
    test("of stdout and stderr come apart and in the order of their writing, with offsets that add up and times that do not go back", async () => {
      await using worker = await testWorker();
      const id = await saying(worker, "out:one\\n", "err:two\\n", "out:three\\n", "err:four");
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
      const id = await saying(worker, "out:one\\n", "err:two\\n", "out:three\\n", "err:four");
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
      const id = await saying(worker, "out:a", "out:b", "out:c");
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
      const id = await saying(worker, "out:012", "err:345", "out:6789");
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
      const id = await saying(worker, "out:012", "err:345", "out:6789");
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
      const id = await saying(worker, "out:a\\nb\\n", "err:x\\ny", "out:c\\n", "err:z\\n");
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
