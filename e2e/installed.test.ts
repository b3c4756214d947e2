import { globSync } from "node:fs";
import { mkdtempDisposable } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { NPM_VERSION } from "./engine/builder.ts";
import { type Debian, startDebian } from "./engine/debian.ts";
import { obstacle } from "./engine/packages.ts";
import { run } from "./engine/process.ts";
import { isAsShown, stepsOf } from "./testing/session.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const PAGE = "docs/operate.md";
/** The versions that the page names. Both are of this checkout. */
const VERSIONS = ["0.1.0", "0.2.0"];
/** The first run makes the machine, and boots it. */
const PREPARED_MS = 1_200_000;
const lacking = obstacle();

/** Where Debian's own programs write, and what is in memory alone. */
const OF_OTHERS =
  "/proc /sys /dev /run /tmp /root /var/cache /var/log /var/lib/apt /var/lib/dpkg /var/lib/systemd".split(" ");
const FILES = `find / ${OF_OTHERS.map((path) => `-path ${path} -prune -o`).join(" ")} -print | sort`;
/** What is not in files: users, cgroups, mounts, units. */
const REST = `getent passwd; getent group; find /sys/fs/cgroup -path '*job*'; grep job /proc/self/mounts
  systemctl list-units --all --plain --no-legend 'job*'; systemctl list-unit-files --no-legend 'job*'
  find /etc/systemd /run/systemd /var/lib/systemd -name '*job*'; ls /run | grep job`;
const PROCESSES = "ps -eo args= | grep -E '/jobs/|supervisor|jobs[.d]|sleep infinity' | grep -v grep";

/** What nodejs.org's archive has, in the place of it: the Node of the package, and npm. */
const NODE = `apt-get -qq install libatomic1 >/dev/null
  dpkg-deb --fsys-tarfile jobsctl_${VERSIONS[0]}_amd64.deb | tar -x --to-stdout ./usr/lib/jobs/bin/node >/usr/local/bin/node
  chmod 755 /usr/local/bin/node; mkdir -p /usr/local/lib/node_modules/npm
  tar -xf npm-${NPM_VERSION}.tgz --strip-components=1 -C /usr/local/lib/node_modules/npm
  ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm; hash -r`;
/** A package manager takes an emulated and busy machine minutes. */
const TEST_MS = 1_200_000;

describe("a new Debian", { timeout: TEST_MS, ...(lacking !== undefined && { skip: true, meta: { lacking } }) }, () => {
  const made = new AsyncDisposableStack();
  let machine: Debian;
  /** What there was before anything was installed. */
  let before: { readonly files: readonly string[]; readonly rest: string };

  beforeAll(async () => {
    const packages = made.use(await mkdtempDisposable(join(tmpdir(), "jobs-installed-")));
    const signal = AbortSignal.timeout(PREPARED_MS);
    const build = (...args: readonly string[]): Promise<string> => run(process.execPath, args, { signal, cwd: ROOT });
    const [started] = await Promise.all([
      startDebian(signal),
      ...VERSIONS.map((version) => build("debian/main.ts", "--out", packages.path, "--version", version)),
      build("packages/pack.ts"),
      run("npm", ["pack", "--silent", "--pack-destination", packages.path, `npm@${NPM_VERSION}`], { signal }),
    ]);
    machine = made.use(started);
    const tarballs = globSync("build/packages/jobs{ctl,d,d-linux-x64}-[0-9]*.tgz", { cwd: ROOT });
    await machine.put("/root", ...globSync(join(packages.path, "*")), ...tarballs.map((path) => join(ROOT, path)));
    await machine.bash("export DEBIAN_FRONTEND=noninteractive");
    before = { files: await files(), rest: await said(REST) };
  }, PREPARED_MS);
  afterAll(() => made.disposeAsync());

  const said = async (script: string): Promise<string> => (await machine.bash(script)).output.trim();
  const files = async (): Promise<string[]> => (await said(FILES)).split("\n");

  /** Runs a section of the page, and holds what it prints against what it shows. */
  async function follow(section: string): Promise<void> {
    for (const { command, printed } of stepsOf(PAGE, section)) {
      const { output } = await machine.bash(command);
      if (!isAsShown(printed, output)) expect(`# ${command}\n${output}`).toBe(`# ${command}\n${printed.join("\n")}\n`);
    }
  }

  it("comes from nothing to a job's output by the commands of the page", () =>
    follow("From nothing to a job's output"));

  it("enforces every limit and all of the isolation under systemd", async () => {
    const { findings }: { findings: { name: string; state: string }[] } = JSON.parse(
      await said("jobsctl doctor --output json"),
    );
    expect(findings.filter(({ state }) => state === "FINDING_STATE_MISSING")).toEqual([]);
    expect(await said("jobsd --check | grep ✗")).toBe("");
  });

  it("has manual pages' sources and completion where Debian looks for them", async () => {
    const installed = await said("dpkg -L jobsctl jobsd");
    for (const path of ["man1/jobsctl.1.gz", "man5/jobsd.toml.5.gz", "man8/jobsd.8.gz"])
      expect(installed).toContain(`/usr/share/man/${path}`);
    expect(await said(". /usr/share/bash-completion/completions/jobsctl; complete -p jobsctl")).toContain("_jobsctl");
  });

  it("refuses a configuration that is wrong, and does not try it for ever; the daemon that runs serves on", async () => {
    // As dpkg runs it for an upgrade.
    const dpkg = "DPKG_MAINTSCRIPT_PACKAGE=jobsd DPKG_MAINTSCRIPT_NAME=postinst";
    const serves = "jobsctl list >/dev/null && echo serves";
    await said("cp /etc/jobs/jobsd.toml kept; echo 'lisen = 1' >>/etc/jobs/jobsd.toml");
    const checked = await said("jobsd --check; echo $?");
    const reloaded = await said(`systemctl reload jobsd; ${serves}`);
    const upgraded = await said(`${dpkg} /var/lib/dpkg/info/jobsd.postinst configure 0.1.0; ${serves}`);
    await said("systemctl restart jobsd");
    const restarted = await said("systemctl show jobsd --property ActiveState,ExecMainStatus,NRestarts");
    const again = await said(`mv kept /etc/jobs/jobsd.toml; systemctl restart jobsd; ${serves}`);
    expect(checked).toMatch(/jobsd\.toml:\d+: .*lisen.*listen[^]*\n125$/);
    expect(reloaded).toMatch(/serves$/);
    expect(upgraded).toMatch(/not restarted[^]*no key lisen[^]*serves$/);
    expect(restarted.split("\n").toSorted()).toEqual(["ActiveState=failed", "ExecMainStatus=125", "NRestarts=0"]);
    expect(again).toBe("serves");
  });

  it("ends no job when the daemon is restarted, killed or reloaded, and keeps its limits", async () => {
    const query = async (): Promise<unknown> => JSON.parse(await said("jobsctl query --output json $id"));
    await said("id=$(jobsctl start --memory 64M -- sh -c 'while sleep 1; do echo tick; done')");
    const started = await query();
    await said("systemctl restart jobsd; systemctl daemon-reload");
    // systemd writes what it knows of the cgroups above, and leaves what is below alone.
    await said("systemctl set-property --runtime jobs.slice MemoryMax=1500M; systemctl revert jobs.slice");
    await said("was=$(systemctl show jobsd -P MainPID); systemctl kill --kill-who=main --signal=KILL jobsd");
    await said("until [ $(systemctl show jobsd -P MainPID) != $was ] && systemctl is-active jobsd; do sleep 1; done");
    await said("systemctl reload jobsd");
    const { pid } = Object(Object(started).job);
    expect(pid).toBeGreaterThan(0);
    expect(await query()).toMatchObject({ job: { pid, state: "STATE_RUNNING" } });
    const limit = "find /sys/fs/cgroup/jobs.slice -name $id -exec cat {}/memory.max {}/cgroup.events ';'";
    expect(await said(limit)).toMatch(/^67108864\npopulated 1$/m);
    expect(Number(await said("jobsctl stream $id | grep -c tick"))).toBeGreaterThan(5);
    await said("jobsctl stop $id");
  });

  it("is upgraded and taken back under running jobs, and a client that follows one loses nothing", async () => {
    const script = "i=0; while sleep 0.5; do i=$((i + 1)); echo $i; done";
    await said(
      `mine=$(jobsctl start -- sh -c '${script}'); jobsctl stream --follow $mine >followed 2>notes & client=$!`,
    );
    await follow("Upgrade, and the way back");
    expect(await said("dpkg-query --show --showformat '${Version} ' jobsctl jobsd")).toBe("0.1.0 0.1.0");
    await said("jobsctl stop $mine; wait $client");
    const numbers = (await said("cat followed")).split("\n").map(Number);
    expect(numbers.length).toBeGreaterThan(20);
    expect(numbers).toEqual(numbers.map((_, at) => at + 1));
  });

  it("is backed up and restored by the commands of the page", async () => {
    await follow("Back up");
    await said("systemctl stop jobs; rm -r /var/lib/jobs/* /etc/jobs/*");
    await follow("Restore");
  });

  it("ends everything by the commands of the page", async () => {
    await said("jobsctl start -- sh -c 'trap : TERM; while :; do sleep 1; done'; jobsctl start -- sleep 1000");
    await follow("End everything");
    expect(await said("find /sys/fs/cgroup/jobs.slice -mindepth 1 -type d")).toBe("");
    expect(await said(PROCESSES)).toBe("");
  });

  it("leaves nothing behind when it is purged while jobs run", async () => {
    await said("systemctl start jobsd; jobsctl start -- sh -c 'sleep 1000 & sleep 1000'");
    // systemd keeps a unit that has failed, though its file is gone.
    await said("echo 'lisen = 1' >>/etc/jobs/jobsd.toml; systemctl restart jobsd");
    await follow("Uninstall");
    expect(await files()).toEqual(before.files);
    expect(await said(REST)).toBe(before.rest);
    expect(await said(PROCESSES)).toBe("");
  });

  it("comes to a job's output from npm's packages, too, by the commands of the page", async () => {
    await said(NODE);
    await follow("From npm's packages");
  });
});
