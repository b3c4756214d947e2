import { execFile } from "node:child_process";
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { runInNewContext } from "node:vm";
import { afterAll, beforeAll, expect, test } from "vitest";
import { compressLog } from "../log/compress.ts";
import { LOG_FILES } from "../log/files.ts";
import { logOf } from "../log/log.ts";
import type { Met } from "../testing/fuzz/main.ts";
import { FILES } from "../testing/fuzz/target.ts";
import { targets } from "../testing/fuzz/targets.ts";
import { finished, run, sh, testDirectory, testWorker } from "../testing/worker.ts";

/*
 * Each parser is given what real jobs have left, damaged at random, in a process of its own, so that one that hangs fails
 * its test. FUZZ_SECONDS=300 is the long form.
 */

const SECONDS = Number(process.env["FUZZ_SECONDS"] ?? 0.5);
const SEED = Number(process.env["FUZZ_SEED"] ?? 1);
/** Others are answered after it. It is of CPU time, so that a loaded machine changes nothing. */
const MOST_TURN_MS = 100;
const MOST_MEMORY_BYTES = 256 * 2 ** 20;
const MINUTE_MS = 60_000;

const files = testDirectory();
afterAll(() => files[Symbol.dispose]());

/** Of very many pieces: their index is of several frames. */
const MANY = 12_000;

/** A log of pieces of ten bytes, of stdout, stderr and gaps in turn. */
function writeMany(directory: string): void {
  const index = Buffer.alloc(64 + MANY * 16);
  index.write("jobslog1", "latin1");
  for (let i = 0; i < MANY; i++) {
    index.writeUIntLE(i * 10, 64 + i * 16, 6);
    index.writeUInt16LE(i % 50 === 49 ? 0 : 1 + (i % 2), 70 + i * 16);
    index.writeUIntLE(1_790_000_000_000 + i, 72 + i * 16, 6);
  }
  writeFileSync(join(directory, "index"), index);
  writeFileSync(join(directory, "output"), Buffer.alloc(MANY * 10, "123456789\n"));
}

/** Compresses a log, and keeps it as it was beside that. */
async function compressBeside(directory: string): Promise<void> {
  const names = ["index", "output"];
  for (const name of names) copyFileSync(join(directory, name), join(directory, `${name}.kept`));
  await compressLog(directory, new AbortController().signal, -1);
  for (const name of names) copyFileSync(join(directory, `${name}.kept`), join(directory, name));
}

beforeAll(async () => {
  for (const name of [FILES.log, FILES.many]) mkdirSync(join(files.path, name));
  const stateDir = join(files.path, FILES.state);
  mkdirSync(stateDir);
  const worker = await testWorker({ stateDir });
  const { id } = await finished(worker, sh("for i in $(seq 6); do seq 9000; seq 5000 >&2; done"));
  const limited = { timeLimitMs: 60_000, labels: new Map([["a", "b"]]), log: { keepForMs: 3_600_000 } };
  for (let i = 0; i < 5; i++) await finished(worker, { ...run("echo", String(i)), ...limited, requestId: `r${i}` });
  await worker.close();
  for (const name of ["index", "output", "exit", "job"])
    copyFileSync(join(stateDir, "jobs", id, name), join(files.path, FILES.log, name));
  writeMany(join(files.path, FILES.many));
  for (const name of [FILES.log, FILES.many]) await compressBeside(join(files.path, name));
});

async function fuzz(target: string): Promise<Met> {
  const program = join(import.meta.dirname, "../testing/fuzz/main.ts");
  const told = await promisify(execFile)(process.execPath, [
    program,
    target,
    files.path,
    String(SECONDS),
    String(SEED),
  ]);
  const met: Met = JSON.parse(told.stdout);
  return met;
}

test.each([...targets.keys()])(
  "whatever is in it, %s is read or refused, in time and with little memory",
  async (target) => {
    const met = await fuzz(target);
    // The long form's are figures of docs/faults.md.
    if (process.env["FUZZ_SECONDS"] !== undefined) process.stdout.write(`${JSON.stringify(met)}\n`);
    expect(met.cases).toBeGreaterThan(0);
    expect(met.longestTurnMs).toBeLessThan(MOST_TURN_MS);
    expect(met.memoryBytes).toBeLessThan(MOST_MEMORY_BYTES);
  },
  SECONDS * 1000 + 3 * MINUTE_MS,
);

test("what is damaged is a real job's", () => {
  for (const name of LOG_FILES.slice(0, 4))
    expect(readFileSync(join(files.path, FILES.log, name)).length, name).toBeGreaterThan(150);
});

test.each([2 ** 31, 2 ** 32, 3 * 2 ** 32])("of a log of over %i records each is found", (records) => {
  const index = {
    size: () => 64 + (records + 9) * 16,
    read(buffer: Buffer, offset: number): number {
      buffer.fill(0);
      if (offset === 0) buffer.write("jobslog1", "latin1");
      else
        for (let at = 0; at < buffer.length; at += 16) {
          buffer.writeUIntLE((offset + at - 64) / 16, at, 6);
          buffer.writeUInt16LE(1, at + 6);
          buffer.writeUIntLE(1, at + 8, 6);
        }
      return buffer.length;
    },
  };
  const log = logOf(index, { size: () => records + 9, read: () => 0 });
  for (const offset of [0, records / 2 + 1, records - 1, records + 7]) {
    // It ends a search that makes no progress, which nothing else in this process could.
    const piece: unknown = runInNewContext("find()", { find: () => log.pieceAt(offset) }, { timeout: 10_000 });
    expect(piece).toMatchObject({ source: "stdout", start: offset, end: offset + 1 });
  }
});
