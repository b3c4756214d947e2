import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, readdirSync, renameSync, rmSync, symlinkSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { StreamOptions } from "../log/reader.ts";
import {
  finished,
  readAll,
  refused,
  sh,
  testDirectory,
  testWorker,
  type TestWorker,
  until,
} from "../testing/worker.ts";

/* Objects in an archive that are not what the worker put there. fuzz/logs.ts has those of which some bytes are others. */

const WAYS: readonly StreamOptions[] = [
  {},
  { position: { kind: "tail-lines", count: 3 } },
  { position: { kind: "offset", offset: 50_000 } },
];

/** The longest that one read of them may take, on a loaded machine: copying three gigabytes takes longer. */
const MOST_MS = 5000;

describe.each(["off", "zstd"] as const)("with compression %s, a job's log in the archive", (logCompress) => {
  const made = new AsyncDisposableStack();
  const end = logCompress === "zstd" ? ".zst" : "";
  let worker: TestWorker;
  let place: string;
  let kept: string;
  let ids: readonly string[] = [];

  beforeAll(async () => {
    const files = made.use(testDirectory());
    [place, kept] = [join(files.path, "archive"), join(files.path, "kept")];
    mkdirSync(place);
    worker = made.use(await testWorker({ archive: { kind: "directory", path: place }, logCompress }));
    const scripts = ["seq 100000 399999", "seq 400000 699999", "seq 20000"];
    ids = await Promise.all(scripts.map(async (script) => (await finished(worker, sh(script))).id));
    const here = (id: string): boolean =>
      readdirSync(worker.directory(id)).some((file) => /^(output|index)/.test(file));
    for (const id of ids) await until("it is moved", () => !here(id));
    cpSync(place, kept, { recursive: true });
  });
  afterAll(() => made.disposeAsync());

  /** The path of a job's object; 0 is the job that is read, 1 one of as much output, 2 one of less. */
  function object(job: number, name: "index" | "output"): string {
    const [instance = ""] = readdirSync(place);
    return join(place, instance, ids[job] ?? "", `${name}${end}`);
  }

  function swap(job: number, ...names: readonly ("index" | "output")[]): void {
    for (const name of names) {
      renameSync(object(0, name), `${object(0, name)}.other`);
      renameSync(object(job, name), object(0, name));
      renameSync(`${object(0, name)}.other`, object(job, name));
    }
  }

  function replace(name: "index" | "output", make: (path: string) => void): void {
    rmSync(object(0, name));
    make(object(0, name));
  }

  const names = ["index", "output"] as const;
  const cases: readonly (readonly [what: string, code: string, change: () => void])[] = [
    ["is another job's", "data-loss", () => swap(1, "index", "output")],
    ["is a shorter job's", "data-loss", () => swap(2, "index", "output")],
    ["has another job's index", "data-loss", () => swap(1, "index")],
    ["has an index of three gigabytes", "data-loss", () => truncateSync(object(0, "index"), 3e9)],
    ["has an index with 50 MB of holes behind it", "data-loss", () => truncateSync(object(0, "index"), 5e7)],
    ...names.flatMap((name): (typeof cases)[number][] => [
      [`has an empty ${name}`, "data-loss", () => truncateSync(object(0, name), 0)],
      [`has an ${name} of 70 bytes`, "data-loss", () => truncateSync(object(0, name), 70)],
      [`has no ${name}`, "unavailable", () => replace(name, () => {})],
      [`has a directory as its ${name}`, "unavailable", () => replace(name, mkdirSync)],
      [`has a link as its ${name}`, "unavailable", () => replace(name, (path) => symlinkSync(object(1, name), path))],
      [`has a FIFO as its ${name}`, "unavailable", () => replace(name, (path) => execFileSync("mkfifo", [path]))],
    ]),
    ...(end ? [["has another job's output", "data-loss", () => swap(1, "output")] as const] : []),
  ];

  test.each(cases)("that %s is refused with %s, soon, and never read as the job's", async (_what, code, change) => {
    change();
    try {
      for (const way of WAYS) {
        const began = performance.now();
        expect(await refused(() => readAll(worker.stream(ids[0] ?? "", way)))).toMatchObject({ code });
        expect(performance.now() - began).toBeLessThan(MOST_MS);
      }
    } finally {
      rmSync(place, { recursive: true });
      cpSync(kept, place, { recursive: true });
    }
  });

  test("of which more output follows is read up to its end", async () => {
    truncateSync(object(0, "output"), 2e11);
    expect((await readAll(worker.stream(ids[0] ?? "", {}))).bytes.length).toBe(2_100_000);
    rmSync(place, { recursive: true });
    cpSync(kept, place, { recursive: true });
  });
});
