import { rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { finished, readAll, refused, run, sh, testWorker, type TestWorker } from "../testing/worker.ts";
import { forms } from "./testing/forms.ts";

const MIB = 1024 * 1024;

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
    [NaN, /logLimitBytes: must be a number/],
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
