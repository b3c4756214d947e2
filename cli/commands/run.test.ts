import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { constants } from "node:os";
import { text } from "node:stream/consumers";
import { readFile, symlink } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Host, JOBSCTL, startHost } from "../testing/host.ts";

let host: Host;
beforeAll(async () => {
  host = await startHost();
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
});

describe("jobsctl run", () => {
  it.each([0, 1, 2, 125, 255])("exits with the job's code %i", async (code) => {
    const ran = await host.jobs(["run", "--", "sh", "-c", `echo out; echo err >&2; exit ${code}`]);
    expect(ran).toEqual({ code, stdout: "out\n", stderr: "err\n" });
  });

  it.each([
    ["with 128 + the signal that killed it", ["sh", "-c", "kill -SEGV $$"], 139, /killed by SIGSEGV/],
    ["with 127 when the command is not found", ["nosuchcommand"], 127, /nosuchcommand/],
    ["with 126 when the command is not executable", ["/etc/passwd"], 126, /\/etc\/passwd/],
  ])("exits %s", async (_, command, code, message) => {
    expect(await host.jobs(["run", "--", ...command])).toMatchObject({
      code,
      stdout: "",
      stderr: expect.stringMatching(message),
    });
  });

  it("has stderr on stdout with --merge, in the order of writing", async () => {
    const ran = await host.jobs(["run", "--merge", "--", "sh", "-c", "echo 1; echo 2 >&2; echo 3; echo 4 >&2"]);
    expect(ran).toEqual({ code: 0, stdout: "1\n2\n3\n4\n", stderr: "" });
  });

  it("exits with 124 when the time limit ended the job", async () => {
    const ran = await host.jobs(["run", "--time-limit", "50ms", "--", "sleep", "60"]);
    expect(ran).toMatchObject({ code: 124, stderr: expect.stringContaining("timed out after 50ms") });
  });

  it.each([
    ["a missing directory", ["--cwd", "/missing"], /cwd/],
    ["an unknown user", ["--user", "nosuchuser"], /user/],
    ["an environment variable's name", ["--env", "A B\n=x", "--env", "=x"], /--env/],
  ])("starts nothing for %s", async (_, flags, message) => {
    const { code, stderr } = await host.jobs(["run", ...flags, "--", "true"]);
    expect(stderr).toMatch(message);
    expect(code).toBe(125);
  });

  it.each([
    ["the job's user and group in one word", ["--user", "65534:65534", "--", "id", "-u"], 0, /^65534\n$/],
    [
      "a group in two places",
      ["--user", "1000:1000", "--group", "5", "--", "true"],
      125,
      /USER, or USER:GROUP without --group/,
    ],
    ["a group that is missing", ["--user", "1000:", "--", "true"], 125, /USER, or USER:GROUP without --group/],
    ["a command line in one word", ["--", "echo hi"], 127, /a command line goes to a shell: sh -c "echo hi"/],
    [
      "more open files than the host has",
      ["--rlimit", "nofile=99999999999", "--", "true"],
      125,
      /^jobsctl: rlimits: nofile: 99999999999 is above \d+, (this host's fs.nr_open|the limit that this worker has, .*)\n$/,
    ],
  ])("understands %s, or says what is right", async (_, args, code, shown) => {
    const ran = await host.jobs(["run", ...args]);
    expect(ran.code).toBe(code);
    expect(ran.stdout + ran.stderr).toMatch(shown);
  });

  it("gives the job the variables that it names, and no others", async () => {
    const ran = await host.jobs(["run", "-e", "ONE=1", "-e", "TWO", "--", "env"], { TWO: "2 2", THREE: "3" });
    expect(
      ran.stdout
        .split("\n")
        .map((line) => line.replace(/=.*/, ""))
        .filter(Boolean)
        .toSorted(),
    ).toEqual(["HOME", "LOGNAME", "ONE", "PATH", "TWO", "USER"]);
    expect(ran.stdout).toContain("TWO=2 2\n");
  });

  it.each(["SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGXCPU"] as const)(
    "stops the job on %s",
    async (signal) => {
      const running = host.launch(["run", "--", "sh", "-c", "echo up; exec sleep 60"]);
      await running.shows("up\n");
      running.child.kill(signal);
      const ran = await running.ended;
      expect(ran).toMatchObject({ code: 143, stderr: expect.stringContaining("stopped by writer") });
    },
  );

  it("kills the job on a second interrupt", async () => {
    const running = host.launch([
      "run",
      "--",
      "sh",
      "-c",
      "trap 'echo asked' TERM; echo up; while :; do sleep 0.05; done",
    ]);
    await running.shows("up\n");
    running.child.kill("SIGINT");
    await running.shows("asked\n");
    running.child.kill("SIGINT");
    expect(await running.ended).toMatchObject({ code: 137, stderr: expect.stringContaining("killing job") });
  });

  it.each(["SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM"] as const)(
    "leaves a job that cannot be stopped on a third %s, exits with 128+N, and says how to reach it",
    async (signal) => {
      const script = "trap 'echo asked' TERM; echo up; while :; do sleep 0.05; done";
      const running = host.launch(["run", "--label", `left=${signal}`, "--", "sh", "-c", script]);
      await running.shows("up\n");
      const [id = ""] = (await host.jobs(["ps", "-q", "-l", `left=${signal}`])).stdout.split("\n");
      process.kill(host.pid, "SIGSTOP");
      try {
        for (const text of ["stopping job", "killing job", ""]) {
          running.child.kill(signal);
          if (text) await running.shows(text, "stderr");
        }
        const { code, stderr } = await running.ended;
        expect(code).toBe(128 + constants.signals[signal]);
        expect(stderr).toContain(
          `job ${id} may still be running: jobsctl stream --follow ${id} shows it, jobsctl stop ${id}`,
        );
      } finally {
        process.kill(host.pid, "SIGCONT");
      }
      await host.jobs(["stop", "--grace", "0", id]);
    },
  );

  it("stops the job when its output finds no room", async () => {
    const script = `exec "$NODE" -- "$JOBSCTL" run --label full=yes -- sh -c 'echo up; exec sleep 600' >/dev/full`;
    const env = { ...process.env, ...host.as("writer"), NODE: process.execPath, JOBSCTL };
    const { status, stderr } = spawnSync("sh", ["-c", script], { env, encoding: "utf8" });
    expect({ status, stderr }).toEqual({ status: 125, stderr: expect.stringMatching(/^jobsctl: stdout: ENOSPC/) });
    const [id = ""] = (await host.jobs(["ps", "-q", "--label", "full=yes"])).stdout.split("\n");
    expect((await host.jobs(["wait", id])).stdout).toContain("stopped by writer");
  });

  it("stops the job when it meets an error that nobody catches", async () => {
    const late = "data:text/javascript,process.on('SIGCONT', () => { throw new Error('oops') })";
    const running = host.launch(["run", "--label", "crash=yes", "--", "sh", "-c", "echo up; exec sleep 600"], {
      NODE_OPTIONS: `--import "${late}"`,
    });
    await running.shows("up\n");
    running.child.kill("SIGCONT");
    expect(await running.ended).toMatchObject({ code: 125, stderr: "jobsctl: oops\n" });
    const [id = ""] = (await host.jobs(["ps", "-q", "--label", "crash=yes"])).stdout.split("\n");
    expect((await host.jobs(["wait", id])).stdout).toContain("stopped by writer");
  });

  it("stops the job, quietly, when nobody reads its output any more", async () => {
    const running = host.launch(["run", "--label", "reader=gone", "--", "yes"]);
    await running.shows("y\n");
    running.child.stdout?.destroy();
    expect(await running.ended).toMatchObject({ code: 141, stderr: "" });
    const [id = ""] = (await host.jobs(["ps", "-q", "--label", "reader=gone"])).stdout.split("\n");
    expect((await host.jobs(["wait", id])).stdout).toContain("stopped by writer");
  });

  it("holds the job's output back, and not in memory, while stdout is full", async () => {
    const running = host.launch(["run", "--", "head", "-c", "200M", "/dev/zero"]);
    await running.shows("\0");
    running.child.stdout?.pause();
    const [id = ""] = (await host.jobs(["ps", "-q", "-n", "1"])).stdout.split("\n");
    // While another client takes all of it, this one could have.
    expect((await host.jobs(["stream", "-f", id])).stdout.length).toBe(200 * 1024 * 1024);
    const status = await readFile(`/proc/${running.child.pid}/status`, "utf8");
    const [, residentKib] = /^VmRSS:\s+(\d+) kB$/m.exec(status) ?? [];
    expect(Number(residentKib) * 1024).toBeLessThan(220e6);
    running.child.stdout?.resume();
    expect((await running.ended).stdout.length).toBe(200 * 1024 * 1024);
  });
});

describe("jobsctl stream", () => {
  it("only detaches on an interrupt", async () => {
    const id = await host.start("sh", "-c", "echo up; exec sleep 60");
    const running = host.launch(["stream", "-f", id]);
    await running.shows("up\n");
    running.child.kill("SIGINT");
    expect(await running.ended).toMatchObject({ code: 130, stderr: "" });
    expect((await host.jobs(["status", id])).stdout).toMatch(/^status: +running$/m);
  });
});

describe("the launchers in bin/", () => {
  const launcher = (name: string): string => fileURLToPath(new URL(`../../bin/${name}`, import.meta.url));

  it("leave signals ignored that the caller has ignored, as nohup does", async () => {
    const script = `trap "" HUP INT QUIT; exec "${launcher("jobsctl")}" run -- sh -c 'echo up; sleep 0.5; echo done'`;
    const child = spawn("sh", ["-c", script], { env: { ...process.env, ...host.as("writer") } });
    const output: string[] = [];
    child.stdout.on("data", (text) => output.push(String(text)));
    await once(child.stdout, "data");
    for (const signal of ["SIGHUP", "SIGINT", "SIGQUIT"] as const) child.kill(signal);
    expect(await once(child, "close")).toEqual([0, null]);
    expect(output.join("")).toBe("up\ndone\n");
  });

  it("leave a daemon's, too", async () => {
    const env = { ...process.env, JOBSD_LISTEN: "127.0.0.1:0", JOBSD_STATE: `${host.dir}/nohup`, ...host.certificates };
    const daemon = spawn("sh", ["-c", `trap "" INT; exec "${launcher("jobsd")}"`], { env });
    await once(daemon.stdout, "data");
    daemon.kill("SIGINT");
    daemon.kill("SIGTERM");
    const [log] = await Promise.all([text(daemon.stderr), once(daemon, "close")]);
    expect(log).toContain('"signal":"SIGTERM"');
  });

  it.each(["jobsctl", "jobsd"])("%s give Node nothing of the command line, and nothing of NODE_OPTIONS", (name) => {
    const env = { ...process.env, NODE_OPTIONS: "--no-such-option" };
    const args = name === "jobsctl" ? ["start", "--env-file", "/none", "--", "true"] : ["--env-file=/none"];
    const { status, stderr } = spawnSync(launcher(name), args, { env, encoding: "utf8" });
    expect({ status, stderr }).toEqual({ status: 125, stderr: expect.stringContaining("no flag --env-file") });
  });

  it("let a job have the caller's NODE_OPTIONS", () => {
    const env = { ...process.env, ...host.as("writer"), NODE_OPTIONS: "--no-such-option" };
    const { stdout } = spawnSync(launcher("jobsctl"), ["run", "-e", "NODE_OPTIONS", "--", "env"], {
      env,
      encoding: "utf8",
    });
    expect(stdout).toMatch(/^NODE_OPTIONS=--no-such-option$/m);
    expect(stdout).not.toContain("JOBS_");
  });

  it("find the checkout through a symlink and pass the exit code on, or say that it is not built", async () => {
    const link = `${host.dir}/link`;
    await symlink(launcher("jobsctl"), link);
    const { stderr } = spawnSync(link, ["nosuchcommand"], { cwd: "/", encoding: "utf8" });
    expect(stderr).toMatch(/^jobsctl: (no command "nosuchcommand"|not built: run npm ci in \/)/);
  });
});
