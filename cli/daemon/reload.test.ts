import { once } from "node:events";
import { copyFileSync, readFileSync } from "node:fs";
import { copyFile, mkdir, readdir, readFile, rename, rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { connect } from "node:tls";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { issueAll } from "../../certs/issue.ts";
import { isRoot, needsRoot } from "../../src/testing/root.ts";
import { type Host, launch, type Running, startHost } from "../testing/host.ts";

const PATIENCE = { timeout: 30_000 };

let host: Host;
/** A daemon of its own, which is told all by its configuration file. */
let daemon: Running;
let server: string;
let file: string;
/** The directory of certificates of another CA. */
let other: string;

const lines = (level = 'log-level = "info"'): string =>
  [
    'listen = "127.0.0.1:0"',
    'state = "state-of-file"',
    'ca = "tls/ca.crt"',
    'cert = "tls/worker.crt"',
    'key = "tls/worker.key"',
    level,
    ...(isRoot ? ['user = "nobody"'] : []),
    "",
  ].join("\n");

beforeAll(async () => {
  host = await startHost();
  other = join(host.dir, "other");
  await issueAll({ out: other, bits: 2048 });
  file = join(host.dir, "jobsd.toml");
  // As Kubernetes has it: links over a link to a directory, which is replaced by a rename.
  await publish("..1", host.file(""));
  for (const name of FILES) await symlink(join("..data", name), join(host.dir, "tls", name));
  await writeFile(file, lines());
  daemon = launch("jobsd", [], { JOBSD_CONFIG: file });
  await daemon.shows("listening on", "stdout");
  server = daemon.output.stdout.trim().replace("listening on ", "");
});
afterAll(async () => {
  daemon.child.kill("SIGTERM");
  await daemon.ended;
  await host[Symbol.asyncDispose]();
});

const FILES = ["ca.crt", "worker.crt", "worker.key"];

/** Makes a version of the certificates that the links lead to. */
async function publish(version: string, from: string): Promise<void> {
  const tls = join(host.dir, "tls");
  await mkdir(join(tls, version), { recursive: true });
  for (const name of FILES) copyFileSync(join(from, name), join(tls, version, name));
  await symlink(version, join(tls, "..new"));
  await rename(join(tls, "..new"), join(tls, "..data"));
}

/** The daemon's log since the test began. */
let begun = 0;
beforeEach(() => {
  begun = daemon.output.stderr.length;
});
function logged(): Record<string, unknown>[] {
  const text = Buffer.from(daemon.output.stderr.slice(begun), "latin1").toString();
  return text
    .slice(0, text.lastIndexOf("\n") + 1)
    .split("\n")
    .filter(Boolean)
    .map((line) => JSON.parse(line));
}
const tells = (entry: object) =>
  expect.poll(logged, PATIENCE).toContainEqual(expect.objectContaining({ ...entry, time: expect.any(String) }));

function jobs(...args: string[]) {
  return launch("jobsctl", args, { ...host.as("writer"), JOBS_SERVER: server }).ended;
}

/** Follows a job that runs until `end`, which returns what the job and its stream were. */
async function streamed(name: string) {
  const go = join(host.dir, `go-${name}`);
  const command = ["sh", "-c", `echo up; until [ -e ${go} ]; do sleep 0.1; done; echo on`];
  const stream = launch("jobsctl", ["run", "--", ...command], { ...host.as("writer"), JOBS_SERVER: server });
  await stream.shows("up");
  return {
    async end() {
      await writeFile(go, "");
      return stream.ended;
    },
  };
}

/** Returns the serial number that the daemon's certificate has for a new connection. */
async function serial(): Promise<string> {
  const [ca, cert, key] = ["ca.crt", "writer.crt", "writer.key"].map((name) => readFileSync(host.file(name)));
  const port = Number(server.split(":").at(-1));
  const socket = connect({ port, ca, cert, key, rejectUnauthorized: false, ALPNProtocols: ["h2"] });
  await once(socket, "secureConnect");
  const { serialNumber } = socket.getPeerCertificate();
  socket.destroy();
  return serialNumber;
}

const hangUp = (): boolean => daemon.child.kill("SIGHUP");
const UNTAKEN = { level: "error", msg: "configuration not taken: all stays as it was" };

describe("SIGHUP", () => {
  it("takes what needs no restart under a running job and an open stream, and says what needs one", async () => {
    const open = await streamed("taken");
    await writeFile(file, `${lines('log-level = "debug"')}max-jobs = 1\nshutdown-timeout = "3s"\nname = "w9"\n`);
    hangUp();
    await tells({
      level: "info",
      msg: "configuration taken",
      "max-jobs": "not given → 1",
      "log-level": "info → debug",
      "shutdown-timeout": "not given → 3s",
    });
    await tells({ level: "warn", msg: "a part of the configuration needs a restart", name: "not given → w9" });
    expect(await jobs("start", "--", "true")).toMatchObject({
      code: 125,
      stderr: expect.stringContaining("--max-jobs"),
    });
    expect(await open.end()).toEqual({ code: 0, stdout: "up\non\n", stderr: "" });
    const { stdout } = await jobs("start", "--", "true");
    expect(stdout).not.toMatch(/^w9/);
    await writeFile(file, lines());
    hangUp();
    await tells({ msg: "configuration taken", "max-jobs": "1 → not given", "log-level": "debug → info" });
  });

  it("with a file that is wrong takes nothing, says where, and takes the mended file", async () => {
    for (const [toml, reason] of [
      [
        'max-jobs = 5\nlog-level = "loud"\n',
        `jobsd.toml:${lines("").split("\n").length + 1}: log-level "loud" is not one of`,
      ],
      ["max-jobs = 5\nmax_calls = 9\n", "there is no key max_calls, did you mean max-calls?"],
      ["max-jobs = 5\nbroken", "is not TOML"],
      ['max-jobs = 5\nlisten = "nowhere"\n', "is not an address"],
      ['max-jobs = 5\nallow-user = ["no such user"]\n', "allow-user: there is no user"],
    ] as const) {
      begun = daemon.output.stderr.length;
      await writeFile(file, lines("").replace(toml.includes("listen") ? /^listen.*$/m : "", "") + toml);
      hangUp();
      await tells({ ...UNTAKEN, reason: expect.stringContaining(reason) });
    }
    await writeFile(file, `${lines()}max-jobs = 6\n`);
    hangUp();
    // A reload that was refused left the setting as it was: else this would be "5 → 6".
    await tells({ msg: "configuration taken", "max-jobs": "not given → 6" });
  });

  it("without a configuration that it can read, or without certificates, takes nothing either", async () => {
    await rename(file, `${file}.away`);
    hangUp();
    await tells({ ...UNTAKEN, reason: expect.stringContaining("jobsd.toml: no such file or directory") });
    begun = daemon.output.stderr.length;
    await writeFile(file, `${lines()}max-jobs = 7\n`);
    await rename(join(host.dir, "tls", "..data"), join(host.dir, "tls", "..gone"));
    hangUp();
    await tells({ ...UNTAKEN, reason: expect.stringContaining("ca.crt: no such file or directory") });
    await rename(join(host.dir, "tls", "..gone"), join(host.dir, "tls", "..data"));
    hangUp();
    await tells({ msg: "configuration taken", "max-jobs": "6 → 7" });
  });

  it("with an audit log that cannot be opened takes nothing, and goes on in the old one", async () => {
    const open = await streamed("audit");
    const log = join(host.dir, "state-of-file/audit.jsonl");
    await rename(log, `${log}.old`);
    await mkdir(log);
    await writeFile(file, `${lines()}max-jobs = 1\n`);
    hangUp();
    await tells({ ...UNTAKEN, reason: expect.stringContaining("EISDIR") });
    // The worker had nothing against its part.
    const started = await jobs("start", "--", "true");
    expect(started).toMatchObject({ code: 0, stderr: "" });
    expect(await readFile(`${log}.old`, "utf8")).toContain(started.stdout.trim());
    await open.end();
    await rename(log, `${log}.directory`);
    hangUp();
    await tells({ msg: "configuration taken", "max-jobs": "7 → 1" });
    const again = await jobs("start", "--", "true");
    expect(await readFile(log, "utf8")).toContain(again.stdout.trim());
  });

  it("hundreds of times under a stream ends nothing, takes the last, and leaves no descriptor behind", async () => {
    const descriptors = async () => (await readdir(`/proc/${daemon.child.pid}/fd`)).length;
    hangUp();
    await tells({ msg: "configuration taken" });
    const before = await descriptors();
    const open = await streamed("storm");
    for (let i = 1; i <= 300; i++) {
      if (i % 10 === 0) await writeFile(file, `${lines()}max-jobs = ${100 + i}\nmax-calls = ${100 + (i % 7)}\n`);
      hangUp();
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    await expect
      .poll(() => logged().findLast(({ "max-jobs": taken }) => taken !== undefined)?.["max-jobs"], PATIENCE)
      .toMatch(/ → 400$/);
    expect(await open.end()).toEqual({ code: 0, stdout: "up\non\n", stderr: "" });
    expect((await jobs("list")).code).toBe(0);
    await expect.poll(descriptors, PATIENCE).toBeLessThanOrEqual(before + 2);
  });
});

describe("certificates that are renewed", () => {
  it("are shown from then on when the link to their directory is swapped, and no stream of a running job ends", async () => {
    const open = await streamed("renewed");
    const before = await serial();
    const both = Buffer.concat([await readFile(host.file("ca.crt")), await readFile(join(other, "ca.crt"))]);
    await mkdir(join(host.dir, "both"));
    await writeFile(join(host.dir, "both/ca.crt"), both);
    for (const name of ["worker.crt", "worker.key"]) await copyFile(join(other, name), join(host.dir, "both", name));
    await publish("..2", join(host.dir, "both"));
    await tells({ msg: "certificates taken", files: FILES.map((name) => join(host.dir, "tls", name)) });
    expect(await serial()).not.toBe(before);
    expect(await open.end()).toEqual({ code: 0, stdout: "up\non\n", stderr: "" });
  });

  it("with a key of another certificate are not taken, until the certificate has come", async () => {
    const before = await serial();
    await mkdir(join(host.dir, "half"));
    for (const name of ["ca.crt", "worker.key"]) await copyFile(host.file(name), join(host.dir, "half", name));
    await copyFile(join(other, "worker.crt"), join(host.dir, "half/worker.crt"));
    await publish("..3", join(host.dir, "half"));
    await tells({
      level: "error",
      msg: "certificates not taken: all stays as it was",
      reason: expect.stringContaining("the private key does not belong to the certificate of"),
    });
    expect(await serial()).toBe(before);
    await publish("..4", host.file(""));
    await tells({ msg: "certificates taken" });
    expect(await serial()).not.toBe(before);
  });

  it("without the CA of a client end that client's stream", async () => {
    const go = join(host.dir, "never");
    const args = ["run", "--", "sh", "-c", `echo up; until [ -e ${go} ]; do sleep 0.1; done`];
    const stream = launch("jobsctl", args, { ...host.as("writer"), JOBS_SERVER: server });
    await stream.shows("up");
    await publish("..5", other);
    await stream.shows("connection lost", "stderr");
    await publish("..6", host.file(""));
    await tells({ msg: "certificates taken", files: FILES.map((name) => join(host.dir, "tls", name)) });
    await writeFile(go, "");
    expect(await stream.ended).toMatchObject({ code: 0 });
  });
});

describe("/etc/jobs/jobsd.toml", needsRoot, () => {
  it("is read where it exists and no other is named", async () => {
    const etc = join(host.dir, "etc");
    await mkdir(join(etc, "jobs"), { recursive: true });
    await writeFile(join(etc, "jobs/jobsd.toml"), "max-jobs = true\n");
    const run = (config: string) =>
      launch(
        "jobsd",
        ["--check"],
        { JOBSD_CONFIG: config },
        { under: ["unshare", "--mount", "sh", "-c", `mount --bind ${etc} /etc && exec "$@"`, "sh"] },
      ).ended;
    expect(await run("")).toEqual({
      code: 125,
      stdout: "",
      stderr: "jobsd: /etc/jobs/jobsd.toml:1: max-jobs must be a number, or a text in quotes, and is true or false\n",
    });
    expect((await run("/dev/null")).stdout).toContain("configuration");
  });

  /** Launches a daemon that has what is in `etc` as the host's /etc/jobs, and no other configuration. */
  function launchWith(etc: string, ...args: string[]): Running {
    const script = `mount -t tmpfs none /etc && cp -r "$0" /etc/jobs && exec "$@"`;
    return launch(
      "jobsd",
      args,
      { ...host.certificates, JOBSD_CONFIG: "" },
      { under: ["unshare", "--mount", "sh", "-c", script, etc] },
    );
  }

  it("that cannot be looked at is told of, and is not taken for none", async () => {
    const etc = join(host.dir, "loop");
    await mkdir(etc);
    await symlink("jobsd.toml", join(etc, "jobsd.toml"));
    const { code, stderr } = await launchWith(etc, "--check").ended;
    expect([code, stderr]).toEqual([125, expect.stringMatching(/^jobsd: \/etc\/jobs\/jobsd\.toml: .*symbolic links/)]);
  });

  it("that has vanished is no configuration without its keys: a reload leaves all as it was", async () => {
    const etc = join(host.dir, "vanishing");
    await mkdir(etc);
    await writeFile(join(etc, "jobsd.toml"), 'quota = "jobs=1"\n');
    const flags = ["--listen", "127.0.0.1:0", "--state", join(host.dir, "vanishing-state")];
    const running = launchWith(etc, ...flags, ...(isRoot ? ["--user", "65534"] : []));
    await running.shows("listening on");
    await rm(`/proc/${running.child.pid}/root/etc/jobs/jobsd.toml`);
    running.child.kill("SIGHUP");
    await running.shows("configuration", "stderr");
    running.child.kill("SIGTERM");
    const { stderr } = await running.ended;
    expect(stderr).toContain("/etc/jobs/jobsd.toml: no such file or directory");
    expect(stderr).toContain("configuration not taken: all stays as it was");
  });
});
