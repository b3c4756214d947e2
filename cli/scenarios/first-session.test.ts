import { createHash, randomBytes } from "node:crypto";
import { chmod, copyFile, mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Host, type Ran, startHost } from "../testing/host.ts";

let host: Host;
beforeAll(async () => {
  host = await startHost();
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
});

function sum(data: Uint8Array): string {
  return createHash("sha256").update(data).digest("hex");
}

function fromJson({ stdout }: Ran): unknown {
  return JSON.parse(stdout);
}

describe("a session", () => {
  it("starts a job, streams it, shows how it ended and lists it", async () => {
    const script = "echo out; echo err >&2; exit 3";
    const started = await host.jobs([
      "start",
      "--label",
      "test=session",
      "--env",
      "SECRET=x",
      "--",
      "sh",
      "-c",
      script,
    ]);
    expect(started).toMatchObject({ code: 0, stderr: "", stdout: expect.stringMatching(/^[a-z0-9.-]+\n$/) });
    const id = started.stdout.trim();

    expect(await host.jobs(["wait", id])).toEqual({ code: 3, stdout: `${id} exited with code 3\n`, stderr: "" });
    expect(await host.jobs(["logs", id])).toEqual({ code: 0, stdout: "out\n", stderr: "err\n" });

    const status = await host.jobs(["status", id]);
    expect(status.stdout).toMatch(/^status: +exited with code 3$/m);
    expect(status.stdout).toMatch(/^command: +sh -c 'echo out; echo err >&2; exit 3'$/m);
    expect(status.stdout).toMatch(/^labels: +test=session$/m);
    expect(status.stdout).toMatch(/^environment: .*SECRET/m);
    expect(status.stdout).not.toContain("SECRET=x");

    const listed = await host.jobs(["ps", "--label", "test=session"]);
    const [header, row, ...others] = listed.stdout.trimEnd().split("\n");
    expect(header).toMatch(/^ID +STATUS +CREATED +ELAPSED +PID +OWNER +USER +COMMAND$/);
    expect(row).toMatch(
      new RegExp(`^${id} +exited\\(3\\) +\\d{4}-\\S+Z +\\S+ +\\d+ +writer +\\S+ +sh -c 'echo out;.*'$`),
    );
    expect(others).toEqual([]);
    expect(await host.jobs(["list", "-q", "--label", "test=session", "--state", "ended"])).toMatchObject({
      stdout: `${id}\n`,
    });
  });

  it("gives the API's messages as JSON", async () => {
    expect(fromJson(await host.jobs(["start", "-o", "json", "--", "true"]))).toMatchObject({
      jobId: expect.any(String),
    });
    const jobId = await host.start("sh", "-c", "exit 4");
    const waited = fromJson(await host.jobs(["wait", "-o", "json", jobId]));
    expect(waited).toMatchObject({ job: { id: jobId, state: "STATE_ENDED", ended: { exited: { code: 4 } } } });
    const query = fromJson(await host.jobs(["query", jobId, "-o", "json"]));
    expect(query).toMatchObject({ exited: true, exitCode: 4, job: { id: jobId } });
    const list = fromJson(await host.jobs(["list", "-n", "1", "-o", "json"]));
    expect(list).toMatchObject({ jobs: [{ id: jobId }] });
  });

  it.each(["query", "wait", "stop"])(
    "gives one JSON document for %s of several jobs, those that are there, in the order asked",
    async (command) => {
      const [one, other] = [await host.start("true"), await host.start("true")];
      await host.jobs(["wait", one, other]);
      expect(fromJson(await host.jobs([command, "-o", "json", other, one]))).toMatchObject([
        { job: { id: other } },
        { job: { id: one } },
      ]);
      if (command === "wait") return; // it waits for none where one is not there
      const asked = await host.jobs([command, "-o", "json", "nope", one]);
      expect(asked).toMatchObject({ code: 1, stderr: expect.stringContaining("nope") });
      expect(fromJson(asked)).toMatchObject([{ job: { id: one } }]);
    },
  );

  it("shows in a line of its own whatever a job is called, and writes nothing on the terminal", async () => {
    const evil = "x\nstatus:        exited with code 0\x1b[2J\u202e\u200b";
    const flags = ["--env", `${evil}=1`, "--label", `evil=${evil}`];
    const started = await host.jobs(["start", ...flags, "--", "sh", "-c", `: '${evil}'`]);
    const id = started.stdout.trim();
    await host.jobs(["wait", id]);
    const seen = [
      await host.jobs(["query", id]),
      await host.jobs(["list", "-l", `evil=${evil}`]),
      await host.jobs(["query", evil]),
      await host.jobs(["start", "--cwd", `/${evil}`, "--", "true"]),
      await host.jobs(["start", "--group", evil, "--", "true"]),
      await host.jobs(["list", "--state", evil]),
      await host.jobs([evil]),
    ].map(({ stdout, stderr }) => Buffer.from(stdout + stderr, "latin1").toString());
    for (const text of seen) {
      expect(text).toMatch(/status: {8}exited with code 0\\(x|u00)1b\[2J\\u202e/);
      expect(text.replaceAll("\n", "")).not.toMatch(/[\p{Cc}\p{Cf}]/u);
    }
    expect(seen[0]?.match(/^status:/gm)).toHaveLength(1);
    expect(seen[1]?.split("\n")).toHaveLength(3);
  });

  it("starts one job for one request id", async () => {
    const command = ["start", "--request-id", "once", "--", "true"];
    expect((await host.jobs(command)).stdout).toBe((await host.jobs(command)).stdout);
  });

  it("streams from an offset, by lines, by bytes and by source, with times", async () => {
    const id = await host.start("sh", "-c", "echo one; echo two; sleep 0.05; echo three >&2");
    await host.jobs(["wait", id]);
    const stream = async (...flags: string[]): Promise<string> => (await host.jobs(["stream", ...flags, id])).stdout;
    expect(await stream("--offset", "4")).toBe("two\n");
    expect(await stream("--tail", "2")).toBe("two\n");
    expect(await stream("--tail-bytes", "10")).toBe("two\n");
    expect(await host.jobs(["stream", "--source", "stderr", id])).toEqual({ code: 0, stdout: "", stderr: "three\n" });
    expect(await stream("-t")).toMatch(/^\d{4}-\S+Z one\n\d{4}-\S+Z two\n$/);
    const messages = (await stream("-o", "json")).trim().split("\n");
    expect(messages.map((line): unknown => JSON.parse(line))).toMatchObject([
      { output: Buffer.from("one\ntwo\n").toString("base64"), source: "SOURCE_STDOUT" },
      { output: Buffer.from("three\n").toString("base64"), source: "SOURCE_STDERR", offset: "8" },
      { end: { id }, offset: "14" },
    ]);
  });

  it("carries every byte of binary output", async () => {
    const file = join(host.dir, "random");
    const bytes = randomBytes(5_000_000);
    await writeFile(file, bytes);
    const ran = await host.jobs(["run", "--", "cat", file]);
    expect(ran.code).toBe(0);
    expect(sum(Buffer.from(ran.stdout, "latin1"))).toBe(sum(bytes));
  });

  it("stops a job that ignores the signal, and says how many processes it had to kill", async () => {
    const running = host.launch(["run", "--", "sh", "-c", "trap '' TERM; sleep 60 & echo up; sleep 60; sleep 60"]);
    await running.shows("up\n");
    const id = (await host.jobs(["ps", "-q", "--state", "running"])).stdout.trim();
    const stopped = await host.jobs(["stop", "--grace", "50ms", id]);
    expect(stopped).toMatchObject({ code: 0, stdout: `${id}\n` });
    expect(stopped.stderr).toMatch(/stopped by writer and had to be killed; [23] processes had to be killed/);
    expect(await running.ended).toMatchObject({ code: 137, stderr: expect.stringContaining("stopped by writer") });
    expect(await host.jobs(["stop", id])).toMatchObject({ code: 0 });
  });

  it("follows on after the daemon was killed and came back, with no byte lost or repeated", async () => {
    const gate = join(host.dir, "gate");
    const script = `echo before; while [ ! -e ${gate} ]; do sleep 0.05; done; echo after`;
    const [done, id] = [await host.start("true"), await host.start("sh", "-c", script)];
    const [running, waiting] = [host.launch(["stream", "-f", id]), host.launch(["wait", done, id])];
    await running.shows("before\n");
    await waiting.shows(done);
    await host.crash();
    await running.shows("connection lost", "stderr");
    await writeFile(gate, "");
    expect(await running.ended).toMatchObject({
      code: 0,
      stdout: "before\nafter\n",
      stderr: expect.stringContaining("offset 7"),
    });
    expect(await waiting.ended).toMatchObject({ code: 0 });
  });

  it("lets a reader look and not touch", async () => {
    const id = await host.start("echo", "seen");
    const reader = host.as("reader");
    expect(await host.jobs(["stream", "-f", id], reader)).toMatchObject({ code: 0, stdout: "seen\n" });
    expect(await host.jobs(["start", "--", "true"], reader)).toMatchObject({
      code: 125,
      stderr: expect.stringMatching(/writer/),
    });
    expect(await host.jobs(["stop", id], reader)).toMatchObject({ code: 1, stdout: "" });
  });

  it("shows the jobs that are there beside those that are not, and exits with 1", async () => {
    const id = await host.start("true");
    const asked = await host.jobs(["query", "nope", id, "neither"]);
    expect(asked).toMatchObject({ code: 1, stdout: expect.stringMatching(new RegExp(`^id: +${id}$`, "m")) });
    expect(asked.stderr).toMatch(/^jobsctl: .*nope.*\njobsctl: .*neither.*\n$/);
  });

  it.each(["nosuchjob", "../../etc/passwd"])("knows no job %s", async (id) => {
    const answers = await Promise.all(["query", "stream", "stop", "wait"].map((command) => host.jobs([command, id])));
    for (const answer of answers) expect(answer).toMatchObject({ stdout: "", stderr: expect.stringContaining(id) });
    expect(answers.map(({ code }) => code)).toEqual([1, 1, 1, 125]);
  });

  it("takes the connection from a context, whose files count from it", async () => {
    const config = join(host.dir, "config");
    await mkdir(join(config, "jobs"), { recursive: true });
    for (const name of ["ca.crt", "reader.crt", "reader.key"])
      await copyFile(host.file(name), join(config, "jobs", name));
    await chmod(join(config, "jobs", "reader.key"), 0o600);
    const context = { server: host.server, ca: "ca.crt", cert: "reader.crt", key: "reader.key" };
    await writeFile(
      join(config, "jobs", "config.json"),
      JSON.stringify({ current: "here", contexts: { here: context } }),
    );
    const none = { JOBS_SERVER: "", JOBS_CA: "", JOBS_CERT: "", JOBS_KEY: "" };
    expect(await host.jobs(["list"], { ...none, XDG_CONFIG_HOME: config })).toMatchObject({ code: 0 });
    expect(await host.jobs(["list", "--context", "gone"], { XDG_CONFIG_HOME: config })).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('no context "gone"; it has here'),
    });
  });

  it("makes, signs and shows certificates", async () => {
    const out = join(host.dir, "alice");
    expect(await host.jobs(["certs", "request", "alice", "--out", out])).toMatchObject({ code: 0 });
    const signed = await host.jobs([
      "certs",
      "sign",
      join(out, "alice.csr"),
      "--ca",
      host.file(""),
      "--role",
      "reader",
      "--min-bits",
      "2048",
    ]);
    expect(signed).toMatchObject({ code: 0, stdout: expect.stringMatching(/^role +reader$/m) });
    const alice = { JOBS_CERT: join(out, "alice.crt"), JOBS_KEY: join(out, "alice.key") };
    expect(await host.jobs(["list"], alice)).toMatchObject({ code: 0 });
    expect(
      await host.jobs(["certs", "sign", join(out, "alice.csr"), "--ca", host.file(""), "--role", "guest"]),
    ).toMatchObject({ code: 125 });
    const shown = await host.jobs(["certs", "inspect", "-o", "json", join(out, "alice.crt")]);
    expect(JSON.parse(shown.stdout)).toMatchObject({ subject: "CN=alice", role: "reader" });
    expect(await readFile(join(out, "alice.csr"), "utf8")).toContain("CERTIFICATE REQUEST");
  });
});
