import { execFileSync } from "node:child_process";
import { createHash, randomBytes, randomInt } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, truncateSync, watch, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { unless } from "../../testing/root.ts";
import { noMounts, smallDisk } from "../../testing/disks.ts";
import { refused, testDirectory } from "../testing/worker.ts";
import { directoryStore } from "./directory.ts";

const { signal } = new AbortController();
const KEY = "w/job/output";
const MIB = 1024 * 1024;

function setup(size: number) {
  const files = testDirectory();
  const root = join(files.path, "archive");
  mkdirSync(root);
  const path = join(files.path, "output");
  const bytes = randomBytes(size);
  writeFileSync(path, bytes);
  const store = directoryStore(root);
  return {
    store,
    root,
    bytes,
    path,
    put: () => store.put(KEY, path, signal),
    [Symbol.dispose]: () => files[Symbol.dispose](),
  };
}

test.each([0, 1, MIB, 3 * MIB + 1])(
  "a file of %i bytes comes back as it was, whole and from any offset",
  async (size) => {
    using a = setup(size);
    await a.put();
    await using stored = await a.store.open(KEY, signal);
    expect(stored.size).toBe(size);
    for (const [offset, length] of [
      [0, size],
      ...Array.from({ length: 20 }, () => [randomInt(size + 1), randomInt(1, MIB)]),
    ]) {
      const buffer = Buffer.alloc(length ?? 0);
      const count = await stored.read(buffer, offset ?? 0);
      expect(buffer.subarray(0, count).equals(a.bytes.subarray(offset, (offset ?? 0) + buffer.length))).toBe(true);
    }
    expect(readdirSync(join(a.root, "w", "job"))).toEqual(["output"]);
  },
);

test("a file that is there, or half there, is written over", async () => {
  using a = setup(MIB);
  await a.put();
  truncateSync(join(a.root, KEY), 10);
  writeFileSync(join(a.root, "w/job/.partial-output"), "of a daemon that was killed");
  await a.put();
  expect(readFileSync(join(a.root, KEY)).equals(a.bytes)).toBe(true);
  expect(readdirSync(join(a.root, "w", "job"))).toEqual(["output"]);
});

test.each<[string, (path: string, precious: string) => void]>([
  ["a link to another file", (path, precious) => symlinkSync(precious, path)],
  ["a FIFO", (path) => execFileSync("mkfifo", [path])],
])("%s in the place of a half file is replaced", async (_what, plant) => {
  using a = setup(10);
  const precious = join(a.root, "precious");
  writeFileSync(precious, "kept");
  mkdirSync(join(a.root, "w/job"), { recursive: true });
  plant(join(a.root, "w/job/.partial-output"), precious);
  await a.put();
  expect(readFileSync(join(a.root, KEY)).equals(a.bytes)).toBe(true);
  expect(readFileSync(precious, "utf8")).toBe("kept");
});

test("what was changed before it was read back is not taken for stored", async () => {
  using a = setup(64 * MIB);
  await a.put();
  // The name appears with the rename; what follows is the reading.
  const watcher = watch(join(a.root, "w", "job"), (_event, name) => {
    if (name !== "output") return;
    watcher.close(); // or what is written here would be seen here
    writeFileSync(join(a.root, KEY), "x", { flag: "r+" });
  });
  await expect(a.put()).rejects.toThrow(/does not read as it was written/);
  await a.put();
  const digest = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex");
  expect(digest(readFileSync(join(a.root, KEY)))).toBe(digest(a.bytes));
});

test("what is there is told from what is not, but not where nothing of the worker is", async () => {
  using a = setup(1);
  await expect(a.store.has(KEY, signal)).rejects.toThrow(/ENOENT/);
  await a.put();
  expect(await a.store.has(KEY, signal)).toBe(true);
  expect(await a.store.has("w/other/output", signal)).toBe(false);
  await expect(a.store.has("other/job/output", signal)).rejects.toThrow(/ENOENT/);
  rmSync(a.root, { recursive: true });
  await expect(a.store.has(KEY, signal)).rejects.toThrow(/ENOENT/);
});

test("what has no room leaves it to what is smaller", unless(noMounts), async () => {
  using a = setup(4 * MIB);
  using disk = smallDisk(join(a.root, "disk"), 2 * MIB);
  const store = directoryStore(disk.path);
  await expect(store.put(KEY, a.path, signal)).rejects.toThrow(/ENOSPC/);
  expect(readdirSync(join(disk.path, "w/job"))).toEqual([]);
  truncateSync(a.path, 1.5 * MIB);
  await store.put(KEY, a.path, signal);
  expect(readFileSync(join(disk.path, KEY)).equals(a.bytes.subarray(0, 1.5 * MIB))).toBe(true);
});

test("a directory that is not there is not made: what it is on may not be mounted", async () => {
  using a = setup(1);
  rmSync(a.root, { recursive: true });
  await expect(a.put()).rejects.toThrow(/ENOENT/);
  expect(await refused(() => a.store.open(KEY, signal))).toMatchObject({
    code: "unavailable",
    message: expect.stringMatching(/^the archive does not give w\/job\/output: ENOENT/),
  });
});

test("a copy ends when it is told to", async () => {
  using a = setup(MIB);
  await expect(a.store.put(KEY, a.path, AbortSignal.abort())).rejects.toThrow(/abort/);
});
