import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { nativeDirectory } from "../../src/os/native.ts";
import { isRoot } from "../../src/testing/root.ts";
import { type Host, launch, startHost } from "../testing/host.ts";
import { openNotifier } from "./notify.ts";

const PATIENCE = { timeout: 30_000 };

let dir: string;
let hears: string;
let host: Host;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "jobs-notify-"));
  hears = join(dir, "hears");
  execFileSync("cc", ["-std=c17", "-o", hears, join(import.meta.dirname, "testing/hears.c")]);
  host = await startHost();
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
  await rm(dir, { recursive: true });
});

/** Listens as systemd does. Returns what has been told, each datagram by its assignments. */
async function listenAt(path: string): Promise<() => Record<string, string>[]> {
  const listener = spawn(hears, [path], { stdio: ["ignore", "pipe", "inherit"] });
  onTestFinished(() => void listener.kill());
  let text = "";
  listener.stdout.on("data", (chunk: Buffer) => (text += chunk.toString()));
  await once(listener.stdout, "data");
  return () =>
    text
      .replace("ready\n", "")
      .split("\n\n")
      .filter(Boolean)
      .map((datagram) =>
        Object.fromEntries(
          datagram.split("\n").map((line) => [line.slice(0, line.indexOf("=")), line.slice(line.indexOf("=") + 1)]),
        ),
      );
}

let daemons = 0;

/** Starts a daemon that is told of a service manager. */
async function daemonOf(path: string, env: NodeJS.ProcessEnv = {}) {
  const state = join(dir, `state-${daemons++}`);
  const words = ["--listen", "127.0.0.1:0", "--state", state];
  const daemon = launch("jobsd", words, { ...host.certificates, NOTIFY_SOCKET: path, ...env });
  onTestFinished(() => void daemon.child.kill("SIGKILL"));
  await daemon.shows("listening on");
  const client = { ...host.as("writer"), JOBS_SERVER: daemon.output.stdout.trim().replace("listening on ", "") };
  return { daemon, jobs: (...args: string[]) => launch("jobsctl", args, client).ended };
}

describe("a service manager", () => {
  it.each([
    ["a path", () => join(dir, "notify")],
    ["a name in the abstract namespace", () => `@jobs-notify-${process.pid}`],
  ])("that listens at %s is told of the start, each reload and the stop, by the daemon itself", async (_, pathOf) => {
    const path = pathOf();
    const told = await listenAt(path);
    const { daemon } = await daemonOf(path);
    const { pid } = daemon.child;
    const ready = { PID: String(pid), READY: "1", STATUS: daemon.output.stdout.trim() };
    await expect.poll(told, PATIENCE).toEqual([ready]);
    const before = process.hrtime.bigint() / 1000n;
    daemon.child.kill("SIGHUP");
    const reloading = { PID: String(pid), RELOADING: "1", MONOTONIC_USEC: expect.any(String) };
    await expect.poll(told, PATIENCE).toEqual([ready, reloading, ready]);
    expect(BigInt(told()[1]?.["MONOTONIC_USEC"] ?? 0)).toBeGreaterThanOrEqual(before);
    daemon.child.kill("SIGTERM");
    await daemon.ended;
    await expect.poll(told, PATIENCE).toEqual([ready, reloading, ready, { PID: String(pid), STOPPING: "1" }]);
  });

  it("hears in the status that a reload was not taken, and that the next one was", async () => {
    const [path, file] = [join(dir, "broken"), join(dir, "jobsd.toml")];
    const told = await listenAt(path);
    await writeFile(file, "max-jobs = 5\n");
    const { daemon } = await daemonOf(path, { JOBSD_CONFIG: file });
    const status = daemon.output.stdout.trim();
    await expect.poll(() => told().length, PATIENCE).toBe(1);
    for (const [toml, more] of [
      ["max-jobs = none\n", "; the configuration was not taken: the log has the reason"],
      ["max-jobs = 6\n", ""],
    ] as const) {
      const before = told().length;
      await writeFile(file, toml);
      daemon.child.kill("SIGHUP");
      await expect.poll(() => told().length, PATIENCE).toBe(before + 2);
      expect(told().at(-1)).toMatchObject({ READY: "1", STATUS: `${status}${more}` });
    }
  });

  it("that wants to hear of the watchdog does so while the event loop turns, and not while it stands", async () => {
    const told = await listenAt(join(dir, "watchdog"));
    const { daemon } = await daemonOf(join(dir, "watchdog"), { WATCHDOG_USEC: "200000" });
    const alive = () => told().filter(({ WATCHDOG }) => WATCHDOG === "1").length;
    await expect.poll(alive, PATIENCE).toBeGreaterThan(3);
    daemon.child.kill("SIGSTOP");
    const stands = () => /^State:\s+T/m.test(readFileSync(`/proc/${daemon.child.pid}/status`, "utf8"));
    await expect.poll(stands, PATIENCE).toBe(true);
    const before = alive();
    await new Promise((resolve) => setTimeout(resolve, 500));
    expect(alive() - before).toBeLessThanOrEqual(1);
    daemon.child.kill("SIGCONT");
    await expect.poll(alive, PATIENCE).toBeGreaterThan(before + 3);
  });

  it("that wants to hear of another process's watchdog hears of none", async () => {
    const told = await listenAt(join(dir, "other"));
    const { daemon } = await daemonOf(join(dir, "other"), { WATCHDOG_USEC: "2000", WATCHDOG_PID: "1" });
    daemon.child.kill("SIGHUP");
    await expect.poll(() => told().length, PATIENCE).toBe(3);
  });

  it("reaches no job, nor what the daemon starts", async () => {
    const path = join(dir, "jobs");
    const told = await listenAt(path);
    const { daemon, jobs } = await daemonOf(path, { WATCHDOG_USEC: "60000000" });
    const { stdout } = await jobs("run", "--", "env");
    expect(stdout).not.toMatch(/NOTIFY|WATCHDOG/);
    const children = readFileSync(`/proc/${daemon.child.pid}/task/${daemon.child.pid}/children`, "utf8").split(" ");
    // Without root the spawner is not to be looked into, by nobody of its user.
    for (const child of isRoot ? children.filter(Boolean) : [])
      expect(readFileSync(`/proc/${child}/environ`, "utf8")).not.toMatch(/NOTIFY|WATCHDOG/);
    expect(told().every(({ PID }) => PID === String(daemon.child.pid))).toBe(true);
  });

  it.each([
    ["", "gone", "ENOENT"],
    ["relative/path", undefined, "NOTIFY_SOCKET is neither an absolute path nor @ with a name"],
    [`/${"x".repeat(200)}`, undefined, "ENAMETOOLONG"],
  ])("that is not there (%j) is told of in the log, and keeps no daemon from serving", async (path, name, reason) => {
    const { daemon, jobs } = await daemonOf(name === undefined ? path : join(dir, name));
    await daemon.shows(reason, "stderr");
    expect((await jobs("list")).code).toBe(0);
  });
});

it("a status has one line, and a missing addon is told of and no more", async () => {
  const told = await listenAt(join(dir, "status"));
  const env = { NOTIFY_SOCKET: join(dir, "status"), WATCHDOG_USEC: "1000000" };
  const warned: string[] = [];
  const log = pino({ level: "warn" }, { write: (line: string) => void warned.push(line) });
  {
    using notifier = openNotifier(join(nativeDirectory(), "notify.node"), env, log);
    expect(env).toEqual({});
    notifier.ready("listening\nREADY=0\x1b[2J");
  }
  await expect
    .poll(told, PATIENCE)
    .toEqual([{ PID: String(process.pid), READY: "1", STATUS: "listening READY=0 [2J" }]);
  await writeFile(join(dir, "no.node"), "");
  using silent = openNotifier(join(dir, "no.node"), { NOTIFY_SOCKET: join(dir, "status") }, log);
  silent.ready("listening");
  expect(warned).toHaveLength(1);
});
