import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";

/** Not every architecture has each of them. */
const CALLS = (
  "fsync fdatasync rename renameat renameat2 link linkat unlink unlinkat mkdir mkdirat " +
  "write pwrite64 writev pwritev pread64"
)
  .split(" ")
  .map((name) => `?${name}`)
  .join();

/**
 * The system calls of a program, in the order of their beginnings, as strace writes them: descriptors with their paths,
 * `root` left out of those.
 */
export function callsOf(root: string, program: string, args: readonly string[]): string[] {
  const out = join(root, "trace");
  const strace = ["-f", "-y", "-qq", "-s", "0", "-e", `trace=${CALLS}`, "-o", out];
  execFileSync("strace", [...strace, process.execPath, program, ...args], { stdio: ["ignore", "ignore", "pipe"] });
  return readFileSync(out, "utf8")
    .split("\n")
    .filter((line) => line.includes(root))
    .map((line) => line.replaceAll(`${root}/`, "").replace(/^\d+ +/, ""));
}

/** Which of these comes in no call behind that of the one before; undefined when all do. */
export function missingIn(calls: readonly string[], wanted: readonly RegExp[]): RegExp | undefined {
  let at = -1;
  return wanted.find((pattern) => {
    at = calls.findIndex((call, n) => n > at && pattern.test(call));
    if (at < 0) at = calls.length;
    return at === calls.length;
  });
}
