import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { childrenOf } from "../../src/testing/processes.ts";
import { unless } from "../../src/testing/root.ts";
import { type Host, JOBSD, startHost } from "../testing/host.ts";

const PATIENCE = { timeout: 30_000 };
const script = (() => {
  try {
    return execFileSync("script", ["--version"], { encoding: "utf8" }).includes("util-linux");
  } catch {
    return false;
  }
})();

let host: Host;
beforeAll(async () => {
  host = await startHost();
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
});

interface OnTerminal {
  readonly pid: () => number;
  /** The text that the terminal was sent. */
  readonly shown: () => string;
  /** Ends the daemon and resolves when its terminal is gone. */
  readonly end: () => Promise<void>;
}

/** Runs a daemon on a terminal, with a configuration file. */
async function onTerminal(file: string, env: NodeJS.ProcessEnv): Promise<OnTerminal> {
  const words = [process.execPath, "--", JOBSD, "--config", file].map((word) => `'${word}'`);
  const terminal: ChildProcess = spawn("script", ["-qec", `exec ${words.join(" ")}`, "/dev/null"], {
    env: { PATH: process.env["PATH"], SHELL: "/bin/sh", TERM: "xterm", ...host.certificates, ...env },
    stdio: ["pipe", "pipe", "inherit"],
  });
  onTestFinished(() => void terminal.kill("SIGKILL"));
  let text = "";
  terminal.stdout?.on("data", (chunk: Buffer) => (text += chunk.toString()));
  const ended = once(terminal, "exit");
  await expect.poll(() => text, PATIENCE).toContain("listening on");
  const pid = (): number => childrenOf(terminal.pid ?? 0)[0] ?? 0;
  return {
    pid,
    shown: () => text.replaceAll("\r\n", "\n"),
    async end() {
      process.kill(pid(), "SIGTERM");
      await ended;
    },
  };
}

describe("the log on a terminal", unless(script ? undefined : "there is no script(1)"), () => {
  const settings = (): string => `listen = "127.0.0.1:0"\nstate = "${join(host.dir, "terminal")}"\n`;

  it("has a line for people, in which nothing writes on the terminal", async () => {
    const file = join(host.dir, "plain.toml");
    await writeFile(file, settings());
    const daemon = await onTerminal(file, { NO_COLOR: "1" });
    expect(daemon.shown()).toMatch(
      /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO {2}listening {2}address=127\.0\.0\.1:\d+ {2}host=/m,
    );
    expect(daemon.shown()).not.toContain('"level"');
    await writeFile(file, `${settings()}"\\u001b[2J\\u202eevil" = 1\n`);
    process.kill(daemon.pid(), "SIGHUP");
    await expect.poll(daemon.shown, PATIENCE).toMatch(/ERROR configuration not taken: all stays as it was {2}reason="/);
    expect(daemon.shown()).toContain("[2J");
    for (const char of ["\x1b", "\u202e"]) expect(daemon.shown()).not.toContain(char);
    await daemon.end();
    expect(daemon.shown()).toMatch(/Z INFO {2}closed\n$/);
  });

  it("is coloured by level where the terminal takes colours", async () => {
    const file = join(host.dir, "coloured.toml");
    await writeFile(file, settings());
    const daemon = await onTerminal(file, {});
    await expect.poll(daemon.shown, PATIENCE).toContain("\x1b[32mINFO \x1b[39m listening");
    await daemon.end();
  });
});

it("the log is JSON elsewhere, with the same facts", async () => {
  const stderr = join(host.dir, "stderr");
  await using other = await startHost([], { stderr });
  const [first] = readFileSync(stderr, "utf8").split("\n");
  expect(JSON.parse(first ?? "")).toMatchObject({
    level: "info",
    time: expect.stringMatching(/^\d{4}-.*Z$/),
    address: other.server,
    msg: "listening",
  });
});
