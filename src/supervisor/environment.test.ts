import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { isRoot } from "../testing/root.ts";
import { BINARIES, CREDENTIALS, compile, hardened, rig, type Rig, type Spec } from "./testing/rig.ts";
import { soon, statOf } from "../testing/processes.ts";

/** What a daemon may be that its jobs are not. */
const ODD_DAEMON = "trap '' INT QUIT PIPE USR1 CHLD; umask 077; ulimit -S -n 4096; cd /tmp";
/** Below 0 takes CAP_SYS_RESOURCE. */
const SCORES = [500, -500].filter(
  (score) => spawnSync("sh", ["-c", `echo ${score} > /proc/self/oom_score_adj`], { stdio: "ignore" }).status === 0,
);

async function outputOf(it: Rig, spec: Spec): Promise<string> {
  const { job, exit } = await it.run(spec);
  expect(exit).toMatchObject({ code: 0 });
  return job.output();
}

/** The lines of /proc/PID/status of a job, by name. */
async function statusOf(it: Rig): Promise<Map<string, string>> {
  const lines = (await outputOf(it, { argv: ["cat", "/proc/self/status"] })).trimEnd().split("\n");
  return new Map(lines.map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()]));
}

describe.each(hardened)("$mode", (variant) => {
  test("descriptors 9, 50 and 251 of the daemon do not leak into the job", async () => {
    await using it = await rig(variant);
    const stray = openSync("/etc/passwd", "r");
    const launch = it.launchOf({ argv: [compile("descriptors", it)] });
    const stdio = Array.from({ length: 252 }, (_, fd) =>
      fd === 1 ? "pipe" : [9, 50, 251].includes(fd) ? stray : ("ignore" as const),
    );
    const daemon = spawn(
      process.execPath,
      [join(import.meta.dirname, "programs/daemon.ts"), BINARIES[variant.build], ...it.daemon(launch)],
      { stdio },
    );
    closeSync(stray);
    await soon(once(daemon, "exit"), "the daemon ends with its job");
    expect(readFileSync(join(launch.directory, "output"), "utf8")).toBe("0\n1\n2\n");
  });

  test("the environment is exactly what was given, byte for byte", async () => {
    await using it = await rig(variant);
    const env = { B: "two\nlines", A: "", ü: "=€=", PATH: "/usr/bin:/bin" };
    const output = await outputOf(it, { argv: ["cat", "/proc/self/environ"], env });
    expect(Buffer.from(output, "latin1").toString()).toBe("B=two\nlines\0A=\0ü==€=\0PATH=/usr/bin:/bin\0");
    expect(await outputOf(it, { argv: ["/bin/cat", "/proc/self/environ"], env: {} })).toBe("");
  });

  test("the arguments are exactly what was given, byte for byte", async () => {
    await using it = await rig(variant);
    const argv = ["sh", "-c", "cat /proc/$$/cmdline; exit", "", "a b", "$HOME", "two\nlines", "€"];
    const output = await outputOf(it, { argv });
    expect(Buffer.from(output, "latin1").toString().split("\0").slice(0, -1)).toEqual(argv);
  });

  test("no signal is blocked, ignored or pending, whatever the daemon ignores", async () => {
    await using it = await rig(variant, { prelude: ODD_DAEMON });
    const status = await statusOf(it);
    for (const name of ["SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd"])
      expect([name, status.get(name)]).toEqual([name, "0".repeat(16)]);
  });

  test("the job leads a session of its own, without a terminal", async () => {
    await using it = await rig(variant);
    const job = await it.start({ script: 'read x < "$CUE"' });
    const [, parent, group, session, terminal] = (statOf(job.pid) ?? []).map(Number);
    expect({ parent, group, session, terminal }).toEqual({
      parent: job.supervisor,
      group: job.pid,
      session: job.pid,
      terminal: 0,
    });
    it.cue();
    await job.ended();
  });

  test("umask, open files and directory are a job's, not the daemon's", async () => {
    await using it = await rig(variant, { prelude: ODD_DAEMON });
    expect(await outputOf(it, { script: "umask; ulimit -S -n; pwd", cwd: "/usr" })).toBe("0022\n1024\n/usr\n");
  });

  test("a job has no new privileges and no capabilities", async () => {
    await using it = await rig(variant);
    const status = await statusOf(it);
    expect(status.get("NoNewPrivs")).toBe("1");
    // Only root can take them out of the bounding set; no_new_privs keeps everybody else from using it.
    for (const name of ["CapInh", "CapPrm", "CapEff", "CapAmb", ...(isRoot ? ["CapBnd"] : [])])
      expect([name, status.get(name)]).toEqual([name, "0".repeat(16)]);
  });

  test("a job runs as its user and groups, and no other", async () => {
    await using it = await rig(variant);
    const status = await statusOf(it);
    const { uid, gid } = CREDENTIALS;
    expect(status.get("Uid")).toBe(Array(4).fill(uid).join("\t"));
    expect(status.get("Gid")).toBe(Array(4).fill(gid).join("\t"));
  });

  if (isRoot)
    test("supplementary groups are those of the start, and root has no capabilities either", async () => {
      await using it = await rig(variant);
      const credentials = { ...CREDENTIALS, uid: 0, gid: 0, groups: [7, 4242, 70000], change: true };
      const status = await outputOf(it, { argv: ["cat", "/proc/self/status"], credentials });
      expect(status).toMatch(/^Groups:\t7 4242 70000 $/m);
      expect(status).toMatch(/^Uid:\t0\t0\t0\t0$/m);
      expect(status).toMatch(/^CapPrm:\t0{16}\nCapEff:\t0{16}\nCapBnd:\t0{16}\nCapAmb:\t0{16}$/m);
    });

  test.each(SCORES)("oom_score_adj is 0 where the daemon's is %i", async (score) => {
    await using it = await rig(variant, { prelude: `echo ${score} > /proc/self/oom_score_adj` });
    expect(await outputOf(it, { argv: ["cat", "/proc/self/oom_score_adj"] })).toBe("0\n");
    expect(readFileSync(`/proc/${it.pid()}/oom_score_adj`, "utf8")).toBe(`${score}\n`);
  });

  test("stdin is /dev/null, whatever the daemon's is", async () => {
    await using it = await rig(variant, { prelude: "exec < /etc/passwd" });
    expect(await outputOf(it, { argv: ["readlink", "/proc/self/fd/0"] })).toBe("/dev/null\n");
    expect(await outputOf(it, { argv: ["wc", "-c"] })).toBe("0\n");
  });

  test("the job can open /dev/stdout and /dev/stderr again, as its own user", async () => {
    await using it = await rig(variant);
    const { job } = await it.run({ script: "echo one > /dev/stdout; echo two > /dev/stderr; echo three >> /dev/fd/1" });
    expect(job.output().trimEnd().split("\n").toSorted()).toEqual(["one", "three", "two"]);
  });
});
