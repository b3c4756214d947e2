import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import type { Pauses } from "../../os/pause.ts";
import { testDirectory, until } from "../testing/worker.ts";
import { openArchive } from "./archive.ts";

/** An archive in a directory that can be taken away, for files of one name each. */
async function setup(pauses: Pauses = { firstMs: 1, lastMs: 20 }) {
  const stack = new AsyncDisposableStack();
  const { path } = stack.use(testDirectory());
  const root = join(path, "archive");
  const away = join(path, "away");
  mkdirSync(root);
  const logged: { level: string; message: string; waiting: unknown }[] = [];
  const moved: string[] = [];
  let tries = 0;
  const archive = stack.use(
    await openArchive(
      { kind: "directory", path: root },
      {
        pauses,
        log: (level, message, facts) => logged.push({ level, message, waiting: "waiting" in facts && facts.waiting }),
        async move(store, id, signal) {
          tries += 1;
          await store.put(`w/${id}/output`, join(path, id), signal);
          moved.push(id);
        },
      },
    ),
  );
  return {
    archive,
    logged,
    moved,
    tries: () => tries,
    write: (id: string) => writeFileSync(join(path, id), `output of ${id}`),
    stored: (id: string) => readFileSync(join(root, "w", id, "output"), "utf8"),
    /** Takes the archive away, and gives it back. */
    away: () => renameSync(root, away),
    back: () => renameSync(away, root),
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
}

test("logs are moved one after another, each once, as they were added", async () => {
  await using a = await setup();
  for (const id of ["one", "two", "three"]) {
    a.write(id);
    a.archive.add(id);
    a.archive.add(id);
  }
  await until("all are moved", () => a.moved.length === 3);
  expect(a.moved).toEqual(["one", "two", "three"]);
  expect(a.stored("two")).toBe("output of two");
  a.write("four");
  a.archive.add("four");
  await until("the next is moved", () => a.moved.length === 4);
  expect(a.logged).toEqual([]);
});

test("an outage is told once, with how many wait, and so is its end; nothing that came meanwhile is lost", async () => {
  await using a = await setup();
  a.away();
  for (const id of ["one", "two", "three"]) {
    a.write(id);
    a.archive.add(id);
  }
  await until("it was tried again and again", () => a.tries() > 8);
  const lost = { level: "error", message: expect.stringMatching(/^logs cannot be archived: ENOENT/), waiting: 3 };
  expect(a.logged).toEqual([lost]);
  a.back();
  await until("all are moved", () => a.moved.length === 3);
  expect(a.moved.toSorted()).toEqual(["one", "three", "two"]);
  expect(a.logged).toEqual([
    lost,
    { level: "info", message: "logs can be archived again", waiting: expect.any(Number) },
  ]);
});

test("one log that cannot be moved keeps no other from its turn", async () => {
  await using a = await setup();
  a.archive.add("missing");
  for (const id of ["one", "two"]) {
    a.write(id);
    a.archive.add(id);
  }
  await until("the others are moved", () => a.moved.length === 2);
  expect(a.logged).toMatchObject([{ level: "error", message: expect.stringMatching(/ENOENT.*missing/) }]);
});

test("disposing ends a pause at once", async () => {
  await using a = await setup({ firstMs: 3_600_000, lastMs: 3_600_000 });
  a.archive.add("missing");
  await until("it is told", () => a.logged.length === 1);
  await a.archive[Symbol.asyncDispose]();
  expect(a.moved).toEqual([]);
});

test("the client of S3 is loaded by a daemon that has its archive there, and by no other", async () => {
  using files = testDirectory();
  const loadedFor = (place: object): string => {
    const program = `
      import { registerHooks } from "node:module";
      const loaded = [];
      registerHooks({ load: (url, context, next) => (loaded.push(url), next(url, context)) });
      const { openWorker } = await import(${JSON.stringify(join(import.meta.dirname, "../worker.ts"))});
      const worker = await openWorker({ stateDir: ${JSON.stringify(join(files.path, "state"))}, ...${JSON.stringify(place)} });
      await worker.close();
      console.log(loaded.join("\\n"));`;
    return execFileSync(process.execPath, ["--input-type=module", "--eval", program], { encoding: "utf8" });
  };
  const place = { kind: "s3", bucket: "logs", prefix: "", endpoint: "http://127.0.0.1:1" };
  expect(loadedFor({ archive: place })).toContain("@aws-sdk/client-s3");
  expect(loadedFor({})).not.toMatch(/@aws-sdk|@smithy|archive\/s3/);
  expect(loadedFor({ archive: { kind: "directory", path: files.path } })).not.toMatch(/@aws-sdk|@smithy|archive\/s3/);
});
