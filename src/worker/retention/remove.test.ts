import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { finished, run, testDirectory, testWorker, until } from "../testing/worker.ts";

test.each<[string, (path: string, precious: string) => void]>([
  ["a link to another file", (path, precious) => symlinkSync(precious, path)],
  ["a link to itself", (path) => symlinkSync(path, path)],
  ["a FIFO that nobody reads", (path) => execFileSync("mkfifo", [path])],
  ["a directory", (path, precious) => execFileSync("sh", ["-c", 'mkdir "$0"; cp "$1" "$0"', path, precious])],
])("a log whose output is %s is pruned, and no other file is emptied", async (_what, replace) => {
  using files = testDirectory();
  const precious = join(files.path, "precious");
  writeFileSync(precious, "kept");
  await using worker = await testWorker({ logPrune: { count: 1 } });
  const { id } = await finished(worker, run("echo", "one"));
  const output = join(worker.directory(id), "output");
  rmSync(output);
  replace(output, precious);
  await finished(worker, run("echo", "two"));
  await until("it is pruned", () => worker.query(id).log?.kind === "pruned" && !existsSync(worker.directory(id)));
  expect(readFileSync(precious, "utf8")).toBe("kept");
});
