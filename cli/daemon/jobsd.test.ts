import { existsSync } from "node:fs";
import { chmod, copyFile, mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Host, launch, type Ran, startHost } from "../testing/host.ts";

let host: Host;
beforeAll(async () => {
  host = await startHost(["--name", "w1", "--log-level", "debug"]);
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
});

let daemons = 0;

/** Runs a daemon that is to fail at its start. */
function daemon(flags: Readonly<Record<string, string>> = {}, env: NodeJS.ProcessEnv = {}): Promise<Ran> {
  const usual = {
    listen: "127.0.0.1:0",
    state: join(host.dir, `state-${daemons++}`),
    ca: host.file("ca.crt"),
    cert: host.file("worker.crt"),
    key: host.file("worker.key"),
  };
  const args = Object.entries({ ...usual, ...flags }).map(([name, value]) => `--${name}=${value}`);
  return launch("jobsd", args, env).ended;
}

describe("jobsd", () => {
  it("puts its name in front of job ids and its audit log beside the jobs", async () => {
    expect(await host.start("true")).toMatch(/^w1\./);
    expect(await readFile(join(host.dir, "state", "audit.jsonl"), "utf8")).toContain("/jobs.v1.WorkerService/Start");
  });

  it("refuses to start in one line that names what is wrong", async () => {
    const open = join(host.dir, "open.key");
    await copyFile(host.file("worker.key"), open);
    await chmod(open, 0o640);
    const file = join(host.dir, "file");
    await writeFile(file, "no PEM");
    await mkdir(join(host.dir, "taken"));
    const port = host.server.split(":").at(-1);
    const cases: readonly (readonly [Record<string, string>, RegExp])[] = [
      [{ ca: "/missing/ca.crt" }, /\/missing\/ca\.crt: no such file/],
      [{ key: open }, /open\.key: others can read this private key \(mode 0640\): chmod 600/],
      [{ key: host.file("writer.key") }, /key.*does not belong to the certificate of /],
      [{ cert: file }, /certificate/],
      [{ listen: `127.0.0.1:${port}` }, /port|in use/],
      [{ state: join(host.dir, "state") }, /state|another|locked/],
      [{ state: join(file, "below") }, /file|directory/],
      [{ state: file }, /state directory/],
      [{ audit: join(host.dir, "no", "audit") }, /audit/],
      [{ audit: join(host.dir, "taken") }, /EISDIR.*taken/],
      [{ "audit-limit": "1023K" }, /--audit-limit 1023K is too small; give at least 1M/],
      [{ "health-socket": file }, /is no socket, and was left as it is/],
      [{ "max-calls": "1" }, /--max-calls/],
    ];
    const ran = await Promise.all(cases.map(([flags]) => daemon(flags)));
    for (const [index, { code, stdout, stderr }] of ran.entries()) {
      expect(stderr).toMatch(cases[index]?.[1] ?? "");
      expect(stderr.split("\n").filter((line) => line.startsWith("jobsd: "))).toHaveLength(1);
      const usage = /^jobsd: --/m.test(stderr);
      expect({ code, stdout }).toEqual({ code: usage ? 125 : 1, stdout: "" });
    }
    expect(await readFile(file, "utf8")).toBe("no PEM");
  });

  it("goes on in a new audit log on SIGHUP, when the old one was moved away, and ends by none", async () => {
    const [log, moved] = [join(host.dir, "state", "audit.jsonl"), join(host.dir, "moved.jsonl")];
    await rename(log, moved);
    const before = await host.start("true");
    for (let i = 0; i < 3; i++) process.kill(host.pid, "SIGHUP");
    await expect.poll(() => existsSync(log)).toBe(true);
    const after = await host.start("true");
    expect(await readFile(moved, "utf8")).toContain(before);
    expect(await readFile(moved, "utf8")).not.toContain(after);
    expect(await readFile(log, "utf8")).toContain(after);
  });

  it.each([
    [{ listen: "7443" }, /--listen: "7443" is not an address; give HOST:PORT/],
    [{ "log-limit": "lots" }, /--log-limit "lots" is not a size/],
    [{ "isolation-off": "pid,user" }, /--isolation-off "user" is not one of pid, mount, ipc/],
    [{ "log-keep": "all" }, /--log-keep "all" is not one of newest, oldest/],
    [{ "log-compress": "gzip" }, /--log-compress "gzip" is not one of off, zstd/],
    [{ "log-prune-age": "30" }, /--log-prune-age "30" is not a duration/],
    [{ "log-prune-age": "0" }, /--log-prune-age 0 would keep no log/],
    [{ "log-prune-count": "-1" }, /--log-prune-count/],
    [{ "log-prune-size": "big" }, /--log-prune-size "big" is not a size/],
    [{ "log-prune-free": "100%" }, /--log-prune-free 100% would keep no log; give 5% or 10G/],
    [{ "log-prune-free": "half" }, /--log-prune-free "half" is not a size/],
    [{ "max-jobs": "0" }, /--max-jobs "0"/],
    [{ "shutdown-timeout": "10" }, /--shutdown-timeout "10" is not a duration/],
    [{ archive: "s3:/logs" }, /--archive "s3:\/logs" is not an archive; give s3:\/\/BUCKET\/PREFIX/],
    [{ archive: "ftp://logs" }, /--archive "ftp:\/\/logs" is not an archive/],
    [{ archive: "/srv/logs", "archive-region": "eu-west-1" }, /--archive-region is for an archive s3:\/\/BUCKET/],
    [{ "archive-endpoint": "http://127.0.0.1:9000" }, /--archive-endpoint is for an archive s3/],
    [
      { archive: "s3://logs", "archive-endpoint": "127.0.0.1:9000" },
      /--archive-endpoint "127.0.0.1:9000" is not an endpoint/,
    ],
    [{ lisen: "x" }, /no flag --lisen, did you mean --listen\?/],
  ])("refuses %j as a wrong command line", async (flags, message) => {
    expect(await daemon(flags)).toMatchObject({ code: 125, stdout: "", stderr: expect.stringMatching(message) });
  });

  it("names what is missing, and the variables that could give it", async () => {
    const env = { JOBSD_LISTEN: "127.0.0.1:0", JOBSD_STATE: join(host.dir, "other") };
    expect(await launch("jobsd", [], env).ended).toMatchObject({
      code: 125,
      stderr:
        "jobsd: no --ca --cert --key: give the flags, or set JOBSD_CA JOBSD_CERT JOBSD_KEY, or have the keys in /dev/null\n",
    });
  });

  it("listens on IPv6, is called there, and ends with 0 while its jobs run on", async () => {
    const six = launch("jobsd", [], {
      JOBSD_LISTEN: "[::1]:0",
      JOBSD_STATE: join(host.dir, "six"),
      ...host.certificates,
      JOBSD_SHUTDOWN_TIMEOUT: "5s",
    });
    await six.shows("\n");
    const [, server = ""] = /^listening on (\[::1\]:\d+)\n$/.exec(six.output.stdout) ?? [];
    const running = host.launch(["run", "--", "sh", "-c", "echo up; exec sleep 60"], { JOBS_SERVER: server });
    await running.shows("up\n");
    six.child.kill("SIGTERM");
    expect(await six.ended).toMatchObject({ code: 0, stderr: expect.stringContaining("jobs keep running") });
    await running.shows("connection lost (the worker is shutting down", "stderr");

    const again = launch("jobsd", ["--listen", server, "--state", join(host.dir, "six")], {
      ...host.certificates,
    });
    await again.shows("listening on");
    running.child.kill("SIGINT");
    expect(await running.ended).toMatchObject({ code: 143 });
    again.child.kill("SIGINT");
    expect(await again.ended).toMatchObject({ code: 0 });
  });
});
