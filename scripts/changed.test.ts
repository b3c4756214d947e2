import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect, test } from "vitest";
import { testDirectory } from "../src/worker/testing/worker.ts";

const PROGRAM = join(import.meta.dirname, "changed.ts");

test("the tests of a change are those beside it, those that import it, and in C those with its name", () => {
  using directory = testDirectory();
  const git = (...args: string[]): Buffer =>
    execFileSync("git", ["-c", "user.name=a", "-c", "user.email=a@b", ...args], { cwd: directory.path });
  const write = (path: string, text: string): void => {
    mkdirSync(dirname(join(directory.path, path)), { recursive: true });
    writeFileSync(join(directory.path, path), text);
  };
  const testsOf = (path: string): string[] => {
    write(path, "// changed\n");
    const told = execFileSync(process.execPath, [PROGRAM], { cwd: directory.path, encoding: "utf8" });
    git("checkout", "--quiet", ".");
    return told.split("\n").filter(Boolean).toSorted();
  };
  write("src/log/log.ts", "");
  write("src/log/log.test.ts", 'import "./log.ts";\n');
  write("src/log/reader.test.ts", "");
  write("src/jobs/start.test.ts", 'import {\n  a,\n} from "../log/log.ts";\n');
  write("src/jobs/stop.test.ts", 'const later = () => import("../log/log.ts");\n');
  write("src/supervisor/filter.c", "");
  write("src/supervisor/spawner.c", "");
  write("src/supervisor/filter.test.ts", "");
  write("src/supervisor/start.test.ts", "");
  git("init", "--quiet");
  git("add", ".");
  git("commit", "--quiet", "--message", "all");
  expect(testsOf("src/log/log.ts")).toEqual([
    "src/jobs/start.test.ts",
    "src/jobs/stop.test.ts",
    "src/log/log.test.ts",
    "src/log/reader.test.ts",
  ]);
  expect(testsOf("src/log/reader.test.ts")).toEqual(["src/log/reader.test.ts"]);
  expect(testsOf("src/supervisor/filter.c")).toEqual(["src/supervisor/filter.test.ts"]);
  expect(testsOf("src/supervisor/spawner.c")).toEqual([
    "src/supervisor/filter.test.ts",
    "src/supervisor/start.test.ts",
  ]);
  expect(testsOf("README.md")).toEqual([]);
});
