import { execFileSync, spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { deviceProgram } from "../worker/limits/devices.ts";
import { thisHost } from "../worker/limits/host.ts";
import type { LinuxDeviceCgroup } from "../worker/model/resources.ts";
import { refused } from "../worker/testing/worker.ts";
import { needsRoot } from "../testing/root.ts";
import { CREDENTIALS, OWN, compile, rig, variants, type Rig } from "./testing/rig.ts";

function program(...devices: readonly LinuxDeviceCgroup[]): Buffer {
  return deviceProgram(devices, thisHost(undefined)) ?? Buffer.alloc(0);
}

const READ_ONLY = program({ allow: true }, { allow: false, path: "/dev/zero", access: "w" });
/** Tells what may be done with /dev/zero. */
const TRY = `
  (: < /dev/zero) 2> /dev/null && echo read
  (: > /dev/zero) 2> /dev/null && echo written
  (: <> /dev/zero) 2> /dev/null && echo both`;

/** Whether root, in the group, may make a node. */
function makes(it: Rig, cgroup: string, ...node: readonly string[]): boolean {
  const path = join(it.directory, "node");
  const script = `echo $$ > ${cgroup}/cgroup.procs && rm -f ${path} && mknod ${path} ${node.join(" ")}`;
  return spawnSync("sh", ["-c", script], { stdio: "ignore" }).status === 0;
}

describe.each(variants.filter(({ mode }) => mode === "cgroup"))("$build", needsRoot, (variant) => {
  test("a job without device rules opens what the file's mode allows", async () => {
    await using it = await rig(variant);
    for (const credentials of [CREDENTIALS, OWN.credentials]) {
      const { job } = await it.run({ script: TRY, credentials });
      expect(job.output()).toBe("read\nwritten\nboth\n");
    }
  });

  test("a job with rules opens what they allow, from its first instruction, whoever it runs as", async () => {
    await using it = await rig(variant);
    for (const credentials of [CREDENTIALS, OWN.credentials]) {
      const { job } = await it.run({ script: TRY, credentials, devices: READ_ONLY });
      expect(job.output()).toBe("read\n");
      const { exit } = await it.run({ argv: ["dd", "of=/dev/zero", "count=0"], credentials, devices: READ_ONLY });
      expect(exit).toMatchObject({ code: 1 });
    }
    const { job } = await it.run({ argv: ["cp", "/dev/null", "/dev/zero"], devices: READ_ONLY });
    expect(job.output()).toContain("Operation not permitted");
  });

  test("a rule that denies everything leaves what every program may expect, and its grandchildren nothing else", async () => {
    await using it = await rig(variant);
    const node = join(it.directory, "kmsg");
    execFileSync("mknod", ["-m", "666", node, "c", "1", "11"]);
    const script = `exec 2>&1; setsid sh -c '(: > ${node}) && echo opened; : > /dev/null && echo null'`;
    expect((await it.run({ script })).job.output()).toBe("opened\nnull\n");
    const { job } = await it.run({ script, devices: program({ allow: false }) });
    expect(job.output()).toMatch(/Operation not permitted\nnull\n$/);
  });

  test("making a node is an access of its own", async () => {
    await using it = await rig(variant);
    const launch = it.launchOf({});
    await it.spawner.devices(launch.cgroup, program({ allow: true, path: "/dev/zero", access: "m" }));
    expect(makes(it, launch.cgroup, "c", "1", "5")).toBe(true);
    expect(makes(it, launch.cgroup, "b", "8", "0")).toBe(false);
    await it.spawner.devices(launch.cgroup, program({ allow: true }, { allow: false, access: "m" }));
    expect(makes(it, launch.cgroup, "c", "1", "5")).toBe(false);
  });

  test("whatever the rules, the kernel takes their program", async () => {
    await using it = await rig(variant);
    const { cgroup } = it.launchOf({});
    const rule = fc.record<LinuxDeviceCgroup, "allow">(
      {
        allow: fc.boolean(),
        type: fc.constantFrom("a", "b", "c"),
        major: fc.bigInt(-1n, 4095n),
        minor: fc.bigInt(-1n, 2n ** 20n - 1n),
        access: fc.constantFrom("r", "w", "m", "rw", "rm", "wm", "rwm"),
      },
      { requiredKeys: ["allow"] },
    );
    await fc.assert(
      fc.asyncProperty(fc.array(rule, { minLength: 1 }), (rules) => it.spawner.devices(cgroup, program(...rules))),
      { numRuns: 200 },
    );
  });

  test("as many rules as may be are taken by the kernel", async () => {
    await using it = await rig(variant);
    const rules = Array.from({ length: 300 }, (_, i) => ({
      allow: i % 3 > 0,
      type: i % 2 > 0 ? "c" : "b",
      major: BigInt(i),
      minor: BigInt(i * 1000),
      access: ["r", "w", "rw", "m"][i % 4] ?? "",
    }));
    const { job } = await it.run({ script: TRY, devices: program(...rules) });
    expect(job.output()).toBe("read\nwritten\nboth\n");
  });

  describe("the rules of a job that runs", () => {
    test("are replaced, and were none before", async () => {
      await using it = await rig(variant);
      const rounds = [1, 2, 3].map((round) => `read go < "$CUE"; ${TRY}\necho ${round}`);
      const job = await it.start({ script: rounds.join("\n") });
      it.cue();
      await job.wrote("1\n");
      await it.spawner.devices(job.cgroup, READ_ONLY);
      it.cue();
      await job.wrote("2\n");
      await it.spawner.devices(job.cgroup, program({ allow: true }));
      it.cue();
      await job.ended();
      expect(job.output()).toBe("read\nwritten\nboth\n1\nread\n2\nread\nwritten\nboth\n3\n");
    });

    test("are never out of force while they are replaced", async () => {
      await using it = await rig(variant);
      const stop = join(it.directory, "stop");
      const script = `echo ready; while [ ! -e ${stop} ]; do (: > /dev/zero) 2> /dev/null && echo opened; done`;
      const job = await it.start({ script, devices: READ_ONLY });
      await job.wrote("ready\n");
      for (let i = 0; i < 500; i++) await it.spawner.devices(job.cgroup, READ_ONLY);
      writeFileSync(stop, "");
      await job.ended();
      expect(job.output()).toBe("ready\n");
    });

    test("do not take the place of somebody else's", async () => {
      await using it = await rig(variant);
      const job = await it.start({ script: `read go < "$CUE"; ${TRY}\necho done` });
      execFileSync(compile("denies-devices", it), [job.cgroup]);
      for (let i = 0; i < 2; i++) await it.spawner.devices(job.cgroup, program({ allow: true }));
      it.cue();
      await job.ended();
      expect(job.output()).toContain("Operation not permitted");
      expect(job.output()).not.toMatch(/^(read|written|both)$/m);
    });

    test("are refused where there is no such group, or no such program, and the spawner goes on", async () => {
      await using it = await rig(variant);
      const job = await it.start({ script: `read go < "$CUE"; ${TRY}` });
      expect(await refused(() => it.spawner.devices("/nowhere", READ_ONLY))).toMatchObject({
        code: "internal",
        facts: { stage: "cgroup", errno: "ENOENT" },
      });
      const cut = READ_ONLY.subarray(0, -8);
      for (const bytes of [cut, Buffer.alloc(0), Buffer.alloc(8, 0xff)])
        expect(await refused(() => it.spawner.devices(job.cgroup, bytes))).toMatchObject({
          code: "unsupported",
          field: "resources.devices",
          facts: { stage: "devices" },
        });
      it.cue();
      await job.ended();
      expect(job.output()).toBe("read\nwritten\nboth\n");
    });
  });

  test("a change is refused when the spawner dies under it, and its successor takes the next one", async () => {
    await using it = await rig(variant);
    await it.spawner.ready;
    const launch = it.launchOf({});
    process.kill(it.pid(), "SIGSTOP");
    const change = refused(() => it.spawner.devices(launch.cgroup, READ_ONLY));
    process.kill(it.pid(), "SIGKILL");
    expect(await change).toMatchObject({ code: "internal", facts: { stage: "supervisor" } });
    await it.spawner.devices(launch.cgroup, READ_ONLY);
  });

  test("without the capabilities it takes, no job is started without its rules", async () => {
    const dropped = "setpriv --bounding-set=-bpf,-sys_admin,-net_admin";
    await using it = await rig(variant, { prelude: `[ "$DROPPED" ] || DROPPED=1 exec ${dropped} "$0" "$@"` });
    expect(await refused(() => it.start({ script: TRY, devices: READ_ONLY }))).toMatchObject({
      code: "unsupported",
      field: "resources.devices",
      facts: { stage: "devices", errno: "EPERM" },
    });
    expect((await it.run({ script: TRY })).job.output()).toBe("read\nwritten\nboth\n");
  });
});

describe.each(variants.filter(({ mode }) => mode === "descent"))("without a cgroup, $build", (variant) => {
  test("no job is started without its rules", async () => {
    await using it = await rig(variant);
    expect(await refused(() => it.start({ script: TRY, devices: READ_ONLY }))).toMatchObject({
      code: "unsupported",
      facts: { stage: "devices" },
    });
  });
});
