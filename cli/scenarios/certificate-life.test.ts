import { execFile, execFileSync } from "node:child_process";
import { chmod, copyFile, mkdtempDisposable, readFile, rename, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { issueAll } from "../../certs/issue.ts";
import { unless } from "../../src/testing/root.ts";
import { JOBSCTL, launch, type Ran, type Running } from "../testing/host.ts";

const PATIENCE = { timeout: 30_000 };
const withoutScript = (() => {
  try {
    execFileSync("script", ["--version"]);
    return undefined;
  } catch {
    return "there is no script(1)";
  }
})();

let dir: string;
/** Two CAs' directories: made once, since their keys take long. */
let [old, young]: readonly string[] = [];
beforeAll(async () => {
  const temporary = await mkdtempDisposable(join(tmpdir(), "jobs-life-"));
  dir = temporary.path;
  // Jobs, which are nobody's, see the files that a test puts there.
  await chmod(dir, 0o755);
  [old, young] = [join(dir, "old"), join(dir, "young")];
  await Promise.all([issueAll({ out: old, bits: 2048 }), issueAll({ out: young, bits: 2048 })]);
  return () => temporary.remove();
});

/** A daemon with the certificates of a directory of its own. */
interface Daemon {
  readonly at: (name: string) => string;
  readonly running: Running;
  /** The environment of a client. */
  as(name: string, ca?: string): NodeJS.ProcessEnv;
}

let daemons = 0;
async function files(): Promise<(name: string) => string> {
  const own = join(dir, `daemon-${daemons++}`);
  await promisify(execFile)("cp", ["-a", old ?? "", own]);
  return (name) => join(own, name);
}

async function boot(at: Daemon["at"], ...flags: readonly string[]): Promise<Daemon> {
  const who = process.getuid?.() === 0 ? ["--user", "nobody"] : [];
  const tls = ["--ca", at("ca.crt"), "--cert", at("worker.crt"), "--key", at("worker.key")];
  const words = ["--listen", "127.0.0.1:0", "--state", at("state"), ...tls, ...who, ...flags];
  const running = launch("jobsd", words);
  onTestFinished(async () => {
    running.child.kill("SIGTERM");
    await running.ended;
  });
  await running.shows("\n");
  const server = running.output.stdout.trim().replace("listening on ", "");
  const as: Daemon["as"] = (name, ca = at("ca.crt")) => {
    const key = at(`${name.replace("renewed-", "")}.key`);
    return { JOBS_SERVER: server, JOBS_CA: ca, JOBS_CERT: at(`${name}.crt`), JOBS_KEY: key };
  };
  return { at, running, as };
}

const jobsctl = (env: NodeJS.ProcessEnv, ...args: readonly string[]): Promise<Ran> =>
  launch("jobsctl", args, env).ended;

/** Runs `jobsctl certs`, which has to go well. */
async function certs(...args: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await launch("jobsctl", ["certs", ...args]).ended;
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  return stdout;
}

/** A file that jobs wait for. They end with the test at the latest. */
function signal(): string {
  const go = join(dir, `go-${daemons}`);
  onTestFinished(() => writeFile(go, ""));
  return go;
}

/** A job that runs until a file is there, and its stream. */
async function follow(env: NodeJS.ProcessEnv, go: string): Promise<Running> {
  const wait = `echo up; until [ -e ${go} ]; do sleep 0.1; done; echo on`;
  const stream = launch("jobsctl", ["run", "--time-limit", "2m", "--", "sh", "-c", wait], env);
  onTestFinished(() => void stream.child.kill("SIGKILL"));
  await stream.shows("up");
  return stream;
}

/** Puts a file in the place of another one at once, as a careful tool does. */
async function replace(path: string, ...parts: readonly string[]): Promise<void> {
  await writeFile(`${path}.new`, (await Promise.all(parts.map((part) => readFile(part, "utf8")))).join(""));
  await rename(`${path}.new`, path);
}

describe("a client whose certificate is revoked", () => {
  it("has its stream ended with the reason, and comes in no more; the job goes on, and others see it", async () => {
    const at = await files();
    await certs("crl", "--ca", at(""));
    const daemon = await boot(at, "--crl", at("ca.crl"));
    const go = signal();
    const stream = await follow(daemon.as("writer"), go);
    const id = (await jobsctl(daemon.as("reader"), "list", "-q")).stdout.trim();
    const watching = launch("jobsctl", ["stream", "--follow", id], daemon.as("reader"));
    await watching.shows("up");
    await certs("revoke", at("writer.crt"), "--ca", at(""), "--reason", "keyCompromise");
    const sinceMs = performance.now();
    const { code, stderr } = await stream.ended;
    expect(performance.now() - sinceMs).toBeLessThan(10_000);
    expect(code).toBe(125);
    expect(stderr).toContain('the certificate of "CN=writer" was revoked by its CA, CN=jobs CA: ask for a new one');
    expect((await jobsctl(daemon.as("writer"), "list")).stderr).toContain(
      "closed the connection when it saw your certificate",
    );
    expect((await jobsctl(daemon.as("reader"), "query", id)).stdout).toContain("running");
    const audit = await readFile(at("state/audit.jsonl"), "utf8");
    expect(audit).toContain('"reason":"CERTIFICATE_REVOKED"');
    await writeFile(go, "");
    expect(await watching.ended).toEqual({ code: 0, stdout: "up\non\n", stderr: "" });
  });

  it("stays out where the list is damaged then, which the log tells, and doctor tells of the list", async () => {
    const at = await files();
    await certs("revoke", at("writer.crt"), "--ca", at(""));
    const daemon = await boot(at, "--crl", at("ca.crl"));
    await writeFile(at("ca.crl"), "hello");
    await daemon.running.shows("is no list of revoked certificates in PEM or DER", "stderr");
    expect((await jobsctl(daemon.as("writer"), "list")).code).toBe(1);
    expect((await jobsctl(daemon.as("reader"), "doctor")).stdout).toMatch(/revoked +1 by CN=jobs CA, until /);
  });

  it("is let in by no daemon that begins without a list that it can rely on, unless that was asked for", async () => {
    const at = await files();
    await writeFile(at("ca.crl"), "hello");
    const refused = boot(at, "--crl", at("ca.crl"));
    await expect(refused).rejects.toThrow("ca.crl: is no list of revoked certificates");
    const tls = ["--ca", at("ca.crt"), "--cert", at("worker.crt"), "--key", at("worker.key"), "--crl", at("ca.crl")];
    const check = await launch("jobsd", ["--check", ...tls]).ended;
    expect(check).toMatchObject({
      code: 125,
      stdout: expect.stringMatching(/revoked +no daemon starts\n.*is no list of/),
    });
    const daemon = await boot(at, "--crl", at("ca.crl"), "--crl-expired", "warn");
    expect((await jobsctl(daemon.as("writer"), "list", "-q")).code).toBe(0);
    expect(daemon.running.output.stderr).toContain("nobody counts as revoked");
    await rename(at("ca.crl"), at("ca.crl.old"));
    await certs("revoke", at("writer.crt"), "--ca", at(""));
    await expect.poll(async () => (await jobsctl(daemon.as("writer"), "list")).code, PATIENCE).toBe(1);
  });
});

describe("a CA that another one follows", () => {
  it("is trusted beside it for a while: jobs and streams go on, and its clients are out in the end", async () => {
    const at = await files();
    const [ca, next] = [at("ca.crt"), join(young ?? "", "ca.crt")];
    await copyFile(ca, at("old-ca.crt"));
    await copyFile(at("ca.key"), at("old-ca.key"));
    const daemon = await boot(at);
    const go = signal();
    const first = await follow(daemon.as("writer"), go);
    // 1. Both are trusted, by the worker and by clients.
    await replace(at("both.crt"), at("old-ca.crt"), next);
    await replace(ca, at("both.crt"));
    await daemon.running.shows("certificates taken", "stderr");
    // 2. Clients have certificates of the new one.
    const renewal = ["--ca", young ?? "", "--old-ca", at("old-ca.crt")];
    for (const name of ["writer", "reader"])
      await certs("renew", at(`${name}.crt`), ...renewal, "--out", at(`renewed-${name}.crt`));
    const second = await follow(daemon.as("renewed-writer", at("both.crt")), go);
    // 3. The worker has one; clients of the old CA come in still.
    await certs("renew", at("worker.crt"), ...renewal);
    await daemon.running.shows("certificates taken", "stderr", 2);
    for (const name of ["writer", "renewed-writer"])
      expect(await jobsctl(daemon.as(name, at("both.crt")), "list", "-q")).toMatchObject({ code: 0 });
    expect(first.child.exitCode).toBeNull();
    // 4. The old one is out.
    await replace(ca, next);
    await daemon.running.shows("certificates taken", "stderr", 3);
    await first.shows("connection lost", "stderr");
    expect((await jobsctl(daemon.as("writer", at("both.crt")), "list")).code).toBe(1);
    expect(await jobsctl(daemon.as("renewed-reader", next), "list", "-q")).toMatchObject({ code: 0 });
    await writeFile(go, "");
    expect(await second.ended).toEqual({ code: 0, stdout: "up\non\n", stderr: "" });
    const { stdout } = await jobsctl(daemon.as("renewed-reader", next), "list");
    expect(stdout.match(/exited\(0\)/g)).toHaveLength(2);
  });
});

describe("jobsctl", () => {
  it("says once on stderr that its certificate ends within 14 days, and not where it does not", async () => {
    const at = await files();
    const daemon = await boot(at);
    for (const [days, told] of [
      ["13", 1],
      ["15", 0],
    ] as const) {
      await certs("renew", at("writer.crt"), "--ca", at(""), "--days", days);
      const { code, stdout, stderr } = await jobsctl(daemon.as("writer"), "list", "-o", "json");
      expect(code).toBe(0);
      expect(JSON.parse(stdout)).toEqual({ jobs: [], nextPageToken: "" });
      expect(stderr.split("\n").filter(Boolean)).toHaveLength(told);
      if (told === 1)
        expect(stderr).toMatch(/^jobsctl: your certificate \(CN=writer\) ends in 12 days, at \S+: have it renewed/);
    }
    expect((await jobsctl(daemon.as("writer"), "--help")).stderr).toBe("");
  });

  it("shows on a terminal that keys are being made, and nothing elsewhere", unless(withoutScript), async () => {
    const words = ["certs", "request", "ada", "--out", join(dir, "ada"), "--bits", "2048"];
    const line = [process.execPath, "--", JOBSCTL, ...words].map((word) => `'${word}'`).join(" ");
    const { stdout } = await promisify(execFile)("script", ["-qec", line, "/dev/null"]);
    expect(stdout.startsWith(`making an RSA key…\r\x1b[K${join(dir, "ada/ada.key")}`)).toBe(true);
    expect((await launch("jobsctl", [...words, "--force"]).ended).stderr).toBe("");
  });
});
