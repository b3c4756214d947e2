import { execFileSync, spawnSync } from "node:child_process";
import { chownSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect, test, type TestOptions } from "vitest";
import { isRoot, needsRoot, unless } from "../../testing/root.ts";
import { openHierarchy } from "../cgroup/hierarchy.ts";
import { CONTROLLERS } from "../limits/setting.ts";
import { rmGroup, testDirectory, testWorker } from "../testing/worker.ts";
import { examine } from "./examine.ts";
import type { Finding } from "./finding.ts";

const SUPERVISOR = join(import.meta.dirname, "../../../build/supervisor");

function named(findings: readonly Finding[], area: Finding["area"], name: string): Finding | undefined {
  return findings.find((each) => each.area === area && each.name === name);
}

function enforced(findings: readonly Finding[]): ReadonlySet<string> {
  return new Set(CONTROLLERS.filter((controller) => named(findings, "controller", controller)?.state === "enforced"));
}

/** Examines in a Node that `wrapper` starts: setpriv or unshare with their options. */
function examinedBy(...wrapper: readonly [string, ...string[]]): Finding[] {
  const [command, ...args] = wrapper;
  const script = `import { examine } from ${JSON.stringify(join(import.meta.dirname, "examine.ts"))};
    console.log(JSON.stringify(await examine({ supervisor: ${JSON.stringify(SUPERVISOR)} })));`;
  const node = [process.execPath, "--input-type=module", "--eval", script];
  return JSON.parse(execFileSync(command, [...args, ...node], { encoding: "utf8" }));
}

const NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] as const;
const NAMESPACE = ["unshare", "--user", "--map-root-user"] as const;

/** Options of a test that takes root, and this command to work. */
function needs(command: string, ...args: readonly string[]): TestOptions {
  return isRoot && spawnSync(command, args).status !== 0 ? unless(`${command} does not work here`) : needsRoot;
}

test("each controller is found as a daemon would have it, and what is not enforced has a reason and a remedy", async () => {
  const hierarchy = openHierarchy(`jobs-test-${crypto.randomUUID().slice(0, 8)}`);
  if (hierarchy.kind === "cgroup2") rmGroup(hierarchy.path);
  const cgroup = hierarchy.kind === "cgroup2" ? dirname(hierarchy.path) : undefined;
  const findings = await examine({ supervisor: SUPERVISOR, ...(cgroup !== undefined && { cgroup }) });
  expect(enforced(findings)).toEqual(hierarchy.kind === "cgroup2" ? hierarchy.controllers : new Set());
  expect(named(findings, "cgroup", "v2")?.state).toBe(hierarchy.kind === "cgroup2" ? "enforced" : "missing");
  for (const finding of findings)
    if (finding.state === "enforced") expect(finding).not.toHaveProperty("reason");
    else expect(finding).toMatchObject({ reason: expect.stringMatching(/./), remedy: expect.stringMatching(/./) });
});

test("a worker examines its host while jobs run, and leaves nothing behind", async () => {
  await using worker = await testWorker();
  const traces = (): readonly string[] => [
    ...readdirSync(worker.stateDir),
    ...(worker.cgroup === undefined ? [] : readdirSync(worker.cgroup)),
  ];
  const before = traces();
  const [findings, same] = await Promise.all([worker.examine(), worker.examine()]);
  expect(same).toBe(findings);
  expect(traces()).toEqual(before);
  const told = /controllers: ([^;]*)/.exec(worker.host)?.[1]?.split(", ") ?? [];
  expect([...enforced(findings)].toSorted()).toEqual(told.filter((name) => name !== "none").toSorted());
  expect(named(findings, "state", "directory")).toMatchObject({ state: "enforced" });
});

test("the filter of system calls is found, unless it is switched off", async () => {
  const found = named(await examine({ supervisor: SUPERVISOR }), "privilege", "seccomp");
  expect(found).toMatchObject({ state: "enforced", meaning: "jobs make only system calls that programs need" });
  const off = named(await examine({ supervisor: SUPERVISOR, isolationOff: ["seccomp"] }), "privilege", "seccomp");
  expect(off).toMatchObject({ state: "limited", reason: "jobsd --isolation-off has it off" });
});

test("a --cgroup that is not a cgroup is named", async () => {
  using directory = testDirectory();
  const findings = await examine({ supervisor: SUPERVISOR, cgroup: directory.path });
  const reason = `${directory.path} is not a cgroup v2 group`;
  expect(named(findings, "cgroup", "v2")).toMatchObject({ state: "missing", reason });
  for (const name of CONTROLLERS)
    expect(named(findings, "controller", name)).toMatchObject({ state: "missing", reason });
});

test("a state directory that cannot be made, and a file system that cannot punch holes, are findings", async () => {
  using directory = testDirectory();
  const file = join(directory.path, "file");
  writeFileSync(file, "");
  const below = await examine({ supervisor: SUPERVISOR, stateDir: join(file, "state") });
  const reason = `${file} cannot be written (ENOTDIR)`;
  expect(named(below, "state", "directory")).toMatchObject({ state: "missing", meaning: "no daemon starts", reason });
  const later = await examine({
    supervisor: SUPERVISOR,
    stateDir: join(directory.path, "a/b"),
    logLimitBytes: 2 ** 60,
  });
  expect(named(later, "state", "directory")).toMatchObject({ state: "enforced" });
  expect(named(later, "state", "space")).toMatchObject({
    state: "limited",
    reason: expect.stringMatching(/^\d+ MiB are free/),
  });
  expect(readdirSync(directory.path)).toEqual(["file"]);
  const sys = await examine({ supervisor: SUPERVISOR, stateDir: "/sys" });
  if (isRoot)
    expect(named(sys, "state", "log limit")).toMatchObject({
      state: "limited",
      meaning: "a log grows beyond --log-limit",
    });
});

test("a state directory that another user could change is told, with its owner", needsRoot, async () => {
  using directory = testDirectory();
  const stateDir = join(directory.path, "state");
  mkdirSync(stateDir);
  chownSync(stateDir, 65534, 65534);
  const findings = await examine({ supervisor: SUPERVISOR, stateDir });
  expect(named(findings, "state", "directory")).toMatchObject({
    state: "missing",
    meaning: "no daemon starts",
    reason: `${stateDir} belongs to nobody (uid 65534), and not to the daemon's user, root (uid 0)`,
    remedy: "chown it to root (uid 0), or name another state directory",
  });
});

test("a supervisor that does not run is a finding, and then nothing is said about namespaces", async () => {
  using directory = testDirectory();
  const script = join(directory.path, "supervisor");
  writeFileSync(script, "no program", { mode: 0o755 });
  for (const supervisor of [script, join(directory.path, "missing")]) {
    const findings = await examine({ supervisor });
    expect(named(findings, "supervisor", "program")).toMatchObject({ state: "missing", meaning: "no daemon starts" });
    expect(findings.map(({ area }) => area)).not.toContain("namespace");
  }
});

test("missing privileges are named, with what would give them", needsRoot, () => {
  const caps = examinedBy("setpriv", "--bounding-set=-sys_admin,-bpf,-setuid", "--inh-caps=-all");
  for (const name of ["pid", "mount", "ipc", "uts", "cgroup", "network", "proc"])
    expect(named(caps, "namespace", name)).toMatchObject({
      state: "missing",
      reason: "the daemon is root without CAP_SYS_ADMIN (EPERM)",
      remedy: "docker run --privileged --cgroupns=private",
    });
  expect(named(caps, "device rules", "bpf")?.reason).toContain("without CAP_BPF");
  expect(named(caps, "privilege", "user")).toMatchObject({ state: "missing", meaning: "no job starts" });
  expect(named(caps, "namespace", "user")).toBeUndefined();
});

test(
  "a user runs jobs only as himself, and owns no cgroup",
  needs(...NOBODY, "test", "-r", import.meta.filename, "-a", "-x", SUPERVISOR),
  () => {
    const nobody = examinedBy(...NOBODY);
    expect(named(nobody, "privilege", "user")).toMatchObject({
      state: "limited",
      meaning: "jobs run only as the daemon's own user (uid 65534)",
    });
    expect(named(nobody, "namespace", "user")).toBeDefined();
    expect(named(nobody, "cgroup", "v2")?.reason).toMatch(/not open to uid 65534|EROFS|not mounted/);
  },
);

test("a sysctl that forbids namespaces is named, with its remedy", needs(...NAMESPACE, "true"), () => {
  const none = examinedBy(...NAMESPACE, "sh", "-c", 'echo 0 > /proc/sys/user/max_net_namespaces; exec "$0" "$@"');
  expect(named(none, "namespace", "network")).toMatchObject({
    state: "missing",
    reason: "user.max_net_namespaces is 0",
    remedy: "sysctl -w user.max_net_namespaces=65536",
  });
  expect(named(none, "namespace", "uts")).toMatchObject({ state: "enforced" });
});
