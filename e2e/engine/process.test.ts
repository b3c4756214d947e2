import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, expect, test } from "vitest";
import { both, CommandError, run } from "./process.ts";

let directory = "";
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "process-"));
});
afterEach(() => rm(directory, { recursive: true }));
const never = new AbortController().signal;

/** The pid that a program has written to a file. */
async function pidIn(path: string): Promise<number> {
  for (;;) {
    const pid = await readFile(path, "utf8").catch(() => "");
    if (pid.endsWith("\n")) return Number(pid);
    await delay(10);
  }
}

async function gone(pid: number): Promise<void> {
  while (existsSync(`/proc/${pid}`) && !(await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "Z")).includes(" Z "))
    await delay(10);
}

test("a program's output is its stdout, and its failure has the end of all that it said", async () => {
  expect(await run("sh", ["-c", "echo out; echo err >&2"], { signal: never })).toBe("out");
  const failure = run("sh", ["-c", "echo why; exit 3"], { signal: never });
  await expect(failure).rejects.toThrow(CommandError);
  await expect(failure).rejects.toThrow(/exit 3:\nwhy/);
  await expect(run("no-such-program", [], { signal: never })).rejects.toThrow(/ENOENT/);
});

test("an abort ends a program with what it has started", async () => {
  const abort = new AbortController();
  const pidFile = join(directory, "pid");
  const running = run("sh", ["-c", `sleep 1000 & echo $! >${pidFile}; wait`], { signal: abort.signal });
  const grandchild = await pidIn(pidFile);
  abort.abort(new Error("enough"));
  await expect(running).rejects.toThrow("enough");
  await gone(grandchild);
});

test("when one of two fails, the other is ended, and the failure is told", async () => {
  const pidFile = join(directory, "pid");
  const slow = (signal: AbortSignal): Promise<string> =>
    run("sh", ["-c", `echo $$ >${pidFile}; exec sleep 1000`], { signal });
  const failing = async (): Promise<never> => {
    await pidIn(pidFile);
    throw new Error("this one");
  };
  await expect(both(never, slow, failing)).rejects.toThrow("this one");
  await gone(await pidIn(pidFile));
});

test("a service dies with the process that started it, even when that is killed", async () => {
  const pidFile = join(directory, "pid");
  const module = fileURLToPath(new URL("process.ts", import.meta.url));
  const service = `start("sh", ["-c", "echo $$ >${pidFile}; exec sleep 1000"], "${directory}/log", 1000)`;
  const parent = spawn(
    process.execPath,
    ["--input-type=module", "-e", `import { start } from "${module}"; ${service}`],
    {
      stdio: "ignore",
    },
  );
  const pid = await pidIn(pidFile);
  parent.kill("SIGKILL");
  await gone(pid);
});
