import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { CONTROLLERS } from "../limits/setting.ts";
import {
  detaches,
  outerPid,
  refused,
  rmGroup,
  run,
  runs,
  startReady,
  testDirectory,
  testWorker,
  until,
} from "../testing/worker.ts";
import { killGroup, limitGroup, removeGroup } from "./group.ts";
import { type Hierarchy, openHierarchy } from "./hierarchy.ts";
import { groupUsage } from "./usage.ts";

/** A hierarchy of the test's own; disposing kills what runs in it and removes it. */
function testHierarchy(): AsyncDisposable & { readonly path: string } {
  const host = openHierarchy(`jobs-test-${crypto.randomUUID().slice(0, 8)}`);
  if (host.kind === "none") throw new Error(host.reason);
  return {
    path: host.path,
    async [Symbol.asyncDispose]() {
      killGroup(host.path);
      await removeGroup(host.path);
    },
  };
}

/** A group as a service manager makes one: no controller is turned on below it, so that it may contain processes. */
function testUnit(): AsyncDisposable & { readonly path: string } {
  const hierarchy = testHierarchy();
  const path = join(hierarchy.path, "unit");
  mkdirSync(path);
  return { path, [Symbol.asyncDispose]: () => hierarchy[Symbol.asyncDispose]() };
}

async function inGroup(group: string, script: string): Promise<ChildProcess & { readonly line: string }> {
  const child = spawn("sh", ["-c", `echo 0 > "$0/cgroup.procs"; ${script}`, group], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const [line]: unknown[] = await once(child.stdout, "data");
  return Object.assign(child, { line: String(line).trim() });
}

function processes(group: string): string[] {
  return readFileSync(join(group, "cgroup.procs"), "utf8").split("\n").filter(Boolean);
}

test("a directory that is not a cgroup is named as the reason, and nothing is made in it", () => {
  using directory = testDirectory();
  expect(openHierarchy("jobs-test", directory.path)).toEqual({
    kind: "none",
    reason: `cgroup v2 is not mounted at ${directory.path}`,
  });
  expect(openHierarchy("jobs-test", "/no/such/directory")).toMatchObject({ kind: "none" });
  expect(readdirSync(directory.path)).toEqual([]);
});

test("a cgroup without cgroup.kill is named as that of too old a kernel", () => {
  using directory = testDirectory();
  for (const file of ["cgroup.procs", "cgroup.controllers", "cgroup.subtree_control"])
    writeFileSync(join(directory.path, file), "");
  expect(openHierarchy("jobs-test", directory.path)).toEqual({
    kind: "none",
    reason: "the kernel has no cgroup.kill (Linux 5.14)",
  });
});

const name = `jobs-test-${crypto.randomUUID().slice(0, 8)}`;
const host = openHierarchy(name);
if (host.kind === "cgroup2") {
  rmGroup(host.path);
  withCgroups(host);
} else {
  test("a host without usable cgroup v2 has a reason", () => {
    expect(host.reason).toMatch(/cgroup v2 (is not mounted|cannot be used)|cgroup\.kill/);
    expect(existsSync(join("/sys/fs/cgroup", name))).toBe(false);
  });
}

function withCgroups({ path: own, controllers }: Hierarchy & { readonly kind: "cgroup2" }): void {
  describe("a hierarchy", () => {
    test("is a group below this process's own, with the controllers that it can delegate to jobs", async () => {
      await using hierarchy = testHierarchy();
      expect(hierarchy.path.startsWith(join(own, ".."))).toBe(true);
      expect(processes(hierarchy.path)).toEqual([]);
      const told = readFileSync(join(hierarchy.path, "cgroup.subtree_control"), "utf8").split(/\s+/).filter(Boolean);
      expect(new Set(told)).toEqual(controllers);
    });

    test("turns on each of its parent's controllers that limits jobs", async () => {
      await using hierarchy = testHierarchy();
      const available = readFileSync(join(hierarchy.path, "cgroup.controllers"), "utf8").split(/\s+/);
      const known: readonly string[] = CONTROLLERS;
      expect(controllers).toEqual(new Set(available.filter((name) => known.includes(name))));
    });

    test("can be opened again, and below a parent that is named", async () => {
      await using parent = testHierarchy();
      const path = join(parent.path, "jobs");
      for (let i = 0; i < 2; i++) expect(openHierarchy("jobs", parent.path)).toMatchObject({ kind: "cgroup2", path });
    });

    test("makes a daemon that is alone in its group move to a leaf, because a group with processes delegates no controllers", async () => {
      await using unit = testUnit();
      const program = `
        import { openHierarchy } from ${JSON.stringify(join(import.meta.dirname, "hierarchy.ts"))};
        console.log(JSON.stringify({ pid: process.pid, host: openHierarchy("jobs") }));
        setInterval(() => {}, 1000);`;
      const daemon = await inGroup(unit.path, `exec "${process.execPath}" --input-type=module -e '${program}'`);
      expect(JSON.parse(daemon.line)).toMatchObject({
        pid: daemon.pid,
        host: { kind: "cgroup2", path: join(unit.path, "jobs") },
      });
      expect(processes(unit.path)).toEqual([]);
      expect(processes(join(unit.path, "daemon"))).toEqual([String(daemon.pid)]);
      daemon.kill("SIGKILL");
      await once(daemon, "exit");
    });

    test("moves no other process: beside others the daemon stays in its group, too", async () => {
      await using unit = testUnit();
      const stranger = await inGroup(unit.path, "echo there; exec sleep 1000");
      const program = `
        import { openHierarchy } from ${JSON.stringify(join(import.meta.dirname, "hierarchy.ts"))};
        console.log(JSON.stringify(openHierarchy("jobs")));
        setInterval(() => {}, 1000);`;
      const daemon = await inGroup(unit.path, `exec "${process.execPath}" --input-type=module -e '${program}'`);
      expect(processes(unit.path).toSorted()).toEqual([String(stranger.pid), String(daemon.pid)].toSorted());
      for (const child of [stranger, daemon]) {
        child.kill("SIGKILL");
        await once(child, "exit");
      }
    });
  });

  test("a job whose daemon restarts in another group is measured, stopped and removed in its old group", async () => {
    await using first = testHierarchy();
    await using second = testHierarchy();
    await using worker = await testWorker({ cgroup: first.path });
    const { id, line } = await startReady(worker, detaches);
    const group = join(worker.cgroup ?? "", id);
    const stays = outerPid(worker.query(id).pid, Number(line));
    await worker.close();
    await using again = await testWorker({ cgroup: second.path, stateDir: worker.stateDir });
    expect(again.query(id).usage).toMatchObject({ fromCgroup: true });
    const { job } = await again.start(run("sleep", "1000"));
    expect(processes(join(again.cgroup ?? "", job.id))).toContain(String(job.pid));
    expect(existsSync(group)).toBe(true);
    expect((await again.stop(id, { by: "tester" })).job.usage).toMatchObject({ fromCgroup: true });
    expect([runs(stays), existsSync(group)]).toEqual([false, false]);
    await again.close();
    expect([worker, again].map(({ cgroup }) => existsSync(cgroup ?? ""))).toEqual([false, true]);
  });

  describe("a group", () => {
    test("gets its limits written in order and read back", async () => {
      await using hierarchy = testHierarchy();
      const path = join(hierarchy.path, "a");
      const files = [
        { file: "cgroup.max.depth", value: "5" },
        { file: "cgroup.max.descendants", value: "max" },
        { file: "cgroup.max.depth", value: "07" },
      ];
      mkdirSync(path);
      expect(limitGroup(path, files)).toEqual(
        new Map([
          ["cgroup.max.depth", "7"],
          ["cgroup.max.descendants", "max"],
        ]),
      );
    });

    test.each([
      ["cgroup.max.depth", "many", "EINVAL"],
      ["no.such.file", "1", "ENOENT"],
    ])("is not used when the kernel refuses one of its limits: %s = %s", async (file, value, errno) => {
      await using hierarchy = testHierarchy();
      const path = join(hierarchy.path, "a");
      mkdirSync(path);
      const error = await refused(() =>
        limitGroup(path, [
          { file: "cgroup.max.descendants", value: "3" },
          { file, value },
        ]),
      );
      expect(error).toMatchObject({
        code: "unsupported",
        facts: { stage: "cgroup", file, value, errno: expect.stringMatching(errno) },
      });
      expect(error.message).toContain(`${value} for ${file}`);
    });

    test("does without an optional file that the kernel does not have, but passes over no other error", async () => {
      await using hierarchy = testHierarchy();
      const path = join(hierarchy.path, "a");
      mkdirSync(path);
      const missing = { file: "no.such.file", value: "0", optional: true } as const;
      expect(limitGroup(path, [missing, { file: "cgroup.max.depth", value: "5" }])).toEqual(
        new Map([["cgroup.max.depth", "5"]]),
      );
      const wrong = { file: "cgroup.max.depth", value: "many", optional: true, field: "resources.x" } as const;
      expect(await refused(() => limitGroup(path, [wrong]))).toMatchObject({
        field: "resources.x",
        facts: { errno: "EINVAL" },
      });
    });

    test("is killed with everything in it: other sessions, forks in flight, ignored signals, groups below", async () => {
      await using hierarchy = testHierarchy();
      const path = join(hierarchy.path, "a");
      mkdirSync(path);
      mkdirSync(join(path, "below"));
      const child = await inGroup(
        path,
        `trap "" TERM HUP INT
         setsid sleep 1000 &
         (echo 0 > "$0/below/cgroup.procs"; exec sleep 1000) &
         (while :; do sleep 0.01 & done) &
         echo there; wait`,
      );
      await until("the group below has a process", () => processes(join(path, "below")).length > 0);
      const pids = [...processes(path), ...processes(join(path, "below"))].map(Number);
      expect(pids.length).toBeGreaterThanOrEqual(4);
      killGroup(path);
      await Promise.all([removeGroup(path), once(child, "exit")]);
      expect(existsSync(path)).toBe(false);
      expect(pids.filter(runs)).toEqual([]);
    });

    test("is removed as soon as its last process has ended, and not before", async () => {
      await using hierarchy = testHierarchy();
      const path = join(hierarchy.path, "a");
      mkdirSync(path);
      const child = await inGroup(path, "echo there; exec sleep 1000");
      let removed = false;
      const removing = removeGroup(path).then(() => (removed = true));
      await until("the kernel has told of the group's events", () =>
        readFileSync(join(path, "cgroup.events"), "utf8").includes("populated 1"),
      );
      expect(removed).toBe(false);
      child.kill("SIGKILL");
      await removing;
      expect(existsSync(path)).toBe(false);
    });

    test("that is gone can be killed and removed, which does nothing", async () => {
      await using hierarchy = testHierarchy();
      const path = join(hierarchy.path, "never");
      killGroup(path);
      await removeGroup(path);
      expect(existsSync(path)).toBe(false);
    });

    test("has the kernel's figures of what it used, and none once it is gone", async () => {
      await using hierarchy = testHierarchy();
      const path = join(hierarchy.path, "a");
      mkdirSync(path);
      // About 50 ms of user time.
      const child = await inGroup(
        path,
        "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo done; exec sleep 1000",
      );
      const kernelUs = (key: string): number =>
        Number(new RegExp(`^${key}_usec (\\d+)$`, "m").exec(readFileSync(join(path, "cpu.stat"), "utf8"))?.[1]);
      const [userBeforeUs, systemBeforeUs] = [kernelUs("user"), kernelUs("system")];
      const { cpuUserUs, cpuSystemUs, fromCgroup, ...rest } = groupUsage(path, controllers);
      expect(cpuUserUs).toBeGreaterThanOrEqual(userBeforeUs);
      expect(cpuUserUs).toBeLessThanOrEqual(kernelUs("user"));
      expect(cpuSystemUs).toBeGreaterThanOrEqual(systemBeforeUs);
      expect(cpuSystemUs).toBeLessThanOrEqual(kernelUs("system"));
      expect(cpuUserUs + cpuSystemUs).toBeGreaterThan(5_000);
      expect(fromCgroup).toBe(true);
      for (const figure of [rest.memoryCurrentBytes, rest.memoryPeakBytes])
        expect(figure === undefined).toBe(!controllers.has("memory"));
      for (const figure of [rest.processes, rest.processesPeak])
        expect(figure === undefined).toBe(!controllers.has("pids"));
      for (const [file, told] of Object.entries({
        "cpu.pressure": rest.cpuPressure,
        "memory.pressure": rest.memoryPressure,
        "io.pressure": rest.ioPressure,
      })) {
        const [, totalUs] = existsSync(join(path, file))
          ? (/^some .* total=(\d+)$/m.exec(readFileSync(join(path, file), "utf8")) ?? [])
          : [];
        expect(told === undefined).toBe(totalUs === undefined);
        if (told) expect(told.some.totalUs).toBeLessThanOrEqual(Number(totalUs));
      }
      child.kill("SIGKILL");
      await removeGroup(path);
      expect(() => groupUsage(path, controllers)).toThrow("ENOENT");
    });
  });
}

test("no group of these tests is left", () => {
  const left = host.kind === "none" ? tmpdir() : join(host.path, "..");
  expect(execFileSync("ls", [left]).toString()).not.toContain(name);
});
