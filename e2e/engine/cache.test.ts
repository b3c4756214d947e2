import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { keyOf, openCache } from "./cache.ts";

let directory = "";
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "cache-"));
  vi.stubEnv("XDG_CACHE_HOME", directory);
});
afterEach(async () => {
  vi.unstubAllEnvs();
  await rm(directory, { recursive: true });
});
const never = new AbortController().signal;
const entries = async (): Promise<string[]> => (await readdir(join(directory, "jobs-e2e"))).toSorted();

test("what is made is made once for each key, and the one of another key goes", async () => {
  await using cache = await openCache(never);
  const made: string[] = [];
  const make = (word: string) => async (path: string) => {
    made.push(word);
    await writeFile(join(path, "file"), word);
  };
  await cache.entry("disk", "a", make("first"));
  const again = await cache.entry("disk", "a", make("second"));
  expect(await readFile(join(again, "file"), "utf8")).toBe("first");
  await cache.entry("other", "a", make("other"));
  await cache.entry("disk", "b", make("third"));
  expect(made).toEqual(["first", "other", "third"]);
  expect(await entries()).toEqual(["disk-b", "lock", "other-a"]);
});

test("what could not be made leaves nothing, nor does what was left by a run that was killed", async () => {
  {
    await using cache = await openCache(never);
    const failing = async (path: string): Promise<void> => {
      await writeFile(join(path, "file"), "half");
      throw new Error("no room");
    };
    await expect(cache.entry("disk", "a", failing)).rejects.toThrow("no room");
    expect(await entries()).toEqual(["lock"]);
  }
  await mkdtemp(join(directory, "jobs-e2e", "new-"));
  await using _ = await openCache(never);
  expect(await entries()).toEqual(["lock"]);
});

test("only one has it open; who waits can be aborted", async () => {
  const abort = new AbortController();
  let second: ReturnType<typeof openCache>;
  {
    await using _ = await openCache(never);
    second = openCache(never);
    const third = openCache(abort.signal);
    expect(await Promise.race([second, third, delay(300, "both wait")])).toBe("both wait");
    abort.abort(new Error("enough"));
    await expect(third).rejects.toThrow("enough");
  }
  await using _ = await second;
});

test("a key tells parts from their concatenation", () => {
  expect(keyOf("ab", "c")).not.toBe(keyOf("a", "bc"));
  expect(keyOf("ab", "c")).toBe(keyOf("ab", "c"));
});
