import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { rig, variants, type Rig } from "./testing/rig.ts";
import { childrenOf, runs, soon, statOf, until } from "../testing/processes.ts";
import { readExit, readLog } from "./testing/records.ts";

const WAITS = 'echo before; read x < "$CUE"; echo after; exit 7';

function adopted(it: Rig, directory: string): Promise<void> {
  return new Promise((resolve) => {
    it.spawner.adopt(directory, () => resolve());
  });
}

function isPending(promise: Promise<unknown>): Promise<boolean> {
  return Promise.race([
    promise.then(
      () => false,
      () => false,
    ),
    Promise.resolve(true),
  ]);
}

describe.each(variants)("$mode, $build", (variant) => {
  test("a job survives the death of daemon and spawner, and the next spawner hears of its end", async () => {
    await using it = await rig(variant);
    await using next = await rig(variant);
    const launch = it.launchOf({ script: WAITS });
    const daemon = spawn(
      process.execPath,
      [join(import.meta.dirname, "programs/daemon.ts"), join(it.directory, "spawner"), ...it.daemon(launch)],
      { stdio: ["ignore", "pipe", "inherit"] },
    );
    const [line]: unknown[] = await soon(once(daemon.stdout, "data"), "the daemon has started the job");
    const pid = Number(line);
    const spawner = Number(statOf(readLog(launch.directory).supervisor)?.[1]);
    for (const killed of [daemon.pid ?? 0, -spawner]) process.kill(killed, "SIGKILL"); // with its whole process group
    await until(() => !runs(daemon.pid ?? 0) && !runs(spawner), "daemon and spawner are dead");
    expect(runs(pid)).toBe(true);

    const gone = adopted(next, launch.directory);
    await next.run({ script: "" }); // what comes after the adoption is answered after it
    expect(await isPending(gone)).toBe(true);
    it.cue();
    await soon(gone, "the adopted job is gone");
    expect(readExit(launch.directory)).toMatchObject({ pid, cause: "none", code: 7, signal: 0, killed: 0, size: 13 });
    expect(readLog(launch.directory).bytes.toString()).toBe("before\nafter\n");
    await soon(adopted(next, launch.directory), "a dead job is gone at once");
  });

  test("a job that ends while there is no spawner leaves its exit record, and is gone at once when adopted", async () => {
    await using it = await rig(variant);
    const job = await it.start({ script: WAITS });
    await job.wrote("before");
    const spawner = it.pid();
    process.kill(spawner, "SIGSTOP");
    it.cue();
    await until(() => !runs(job.supervisor), "the supervisor ends without a spawner");
    expect(readExit(job.directory)).toMatchObject({ code: 7 });
    process.kill(spawner, "SIGKILL");
    await soon(job.gone, "the next spawner says that the job is gone");
  });

  test("a killed spawner is replaced, and its jobs are adopted", async () => {
    await using it = await rig(variant);
    const job = await it.start({ script: WAITS });
    const first = it.pid();
    process.kill(first, "SIGKILL");
    await until(() => it.pid() !== first, "there is another spawner");
    await it.run({ script: "" });
    expect(await isPending(job.gone)).toBe(true);
    expect(statOf(job.pid)?.[1]).toBe(String(job.supervisor));
    it.cue();
    expect(await job.ended()).toMatchObject({ code: 7, size: 13 });
  });

  test("a killed supervisor takes the job's main process with it, and leaves no exit record", async () => {
    await using it = await rig(variant);
    const job = await it.start({ argv: ["sleep", "1000"] });
    process.kill(job.supervisor, "SIGKILL");
    await soon(job.gone, "the spawner says that it is gone");
    await until(() => !runs(job.pid), "the main process is killed");
    expect(existsSync(join(job.directory, "exit"))).toBe(false);
  });

  test("a supervisor that is stopped is made to go on, before its job and while that runs", async () => {
    await using it = await rig(variant);
    await it.run({ script: "" });
    await until(() => childrenOf(it.pid()).every((pid) => statOf(pid)?.[0] === "S"), "its supervisor is gone");
    expect(childrenOf(it.pid())).not.toEqual([]);
    for (const spare of childrenOf(it.pid())) process.kill(spare, "SIGSTOP");
    const job = await it.start({ argv: ["sleep", "1000"], timeLimitMs: 1000 });
    process.kill(job.supervisor, "SIGSTOP");
    expect(await job.ended()).toMatchObject({ cause: "timeout" });
  });

  test("what is no job is gone at once", async () => {
    await using it = await rig(variant);
    const directory = join(it.directory, "ordinary");
    mkdirSync(directory);
    await soon(adopted(it, directory), "a directory without FIFO is gone");
    writeFileSync(join(directory, "control"), "");
    await soon(adopted(it, directory), "a directory with a file for a FIFO is gone");
    await soon(adopted(it, join(it.directory, "nowhere")), "a missing directory is gone");
    await soon(adopted(it, "x".repeat(5000)), "a path that is too long is gone");
    const job = await it.start({ script: WAITS });
    symlinkSync(job.directory, join(it.directory, "link"));
    await soon(adopted(it, join(it.directory, "link")), "a link to a job's directory is gone");
    it.cue();
    await job.ended();
  });
});
