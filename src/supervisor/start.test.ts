import { execFileSync } from "node:child_process";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { JobError } from "../worker/model/errors.ts";
import type { Launch } from "../worker/supervisor/frame.ts";
import { SPARE } from "../worker/supervisor/spare.ts";
import { needsRoot } from "../testing/root.ts";
import { rig, supervisorsOf, variants, type Rig, type Spec } from "./testing/rig.ts";
import { childrenOf, runs, statOf, until } from "../testing/processes.ts";

interface Refusal {
  readonly what: string;
  readonly stage: string;
  readonly errno: string;
  /** The errno where it is another in a pid namespace. */
  readonly isolated?: string;
  readonly spec: (rig: Rig) => Spec;
}

function file(rig: Rig, name: string, text: string, mode: number): string {
  const path = join(rig.directory, name);
  writeFileSync(path, text);
  chmodSync(path, mode);
  return path;
}

function folder(rig: Rig, name: string, mode = 0o755): string {
  const path = join(rig.directory, name);
  mkdirSync(path, { mode });
  return path;
}

/** Stops the spares once they are ready, which is when they sleep, and the spawner, so that there are no more. */
async function stopSpares(it: Rig): Promise<number[]> {
  const spares = (): number[] => childrenOf(it.pid()).filter(runs);
  await until(() => spares().length > 0, "spares are there");
  process.kill(it.pid(), "SIGSTOP");
  await until(() => statOf(it.pid())?.[0] === "T", "the spawner makes no more of them");
  await until(() => spares().every((pid) => statOf(pid)?.[0] === "S"), "spares are ready");
  const stopped = spares();
  for (const pid of stopped) process.kill(pid, "SIGSTOP");
  return stopped;
}

/** What a start comes to, an error included. */
function attempt(it: Rig, launch: Launch): Promise<unknown> {
  const nothing = (): void => {};
  return it.spawner.launch(launch, nothing, nothing).catch((error: unknown) => error);
}

const PATH = "/usr/bin:/bin";
const refusals: readonly Refusal[] = [
  { what: "a program that is not there", stage: "exec", errno: "ENOENT", spec: () => ({ argv: ["/nowhere/at/all"] }) },
  { what: "a name that is not on PATH", stage: "exec", errno: "ENOENT", spec: () => ({ argv: ["no-such-program"] }) },
  { what: "a name where there is no PATH", stage: "exec", errno: "ENOENT", spec: () => ({ argv: ["true"], env: {} }) },
  {
    what: "a file that is not executable",
    stage: "exec",
    errno: "EACCES",
    spec: (rig) => ({ argv: [file(rig, "text", "#!/bin/sh\n", 0o644)] }),
  },
  {
    what: "a name that is on PATH but not executable, though not found after",
    stage: "exec",
    errno: "EACCES",
    spec: (rig) => {
      file(rig, "text", "#!/bin/sh\n", 0o644);
      return { argv: ["text"], env: { PATH: `${rig.directory}:${PATH}` } };
    },
  },
  { what: "a directory", stage: "exec", errno: "EACCES", spec: (rig) => ({ argv: [rig.directory] }) },
  {
    what: "a file of no known format",
    stage: "exec",
    errno: "ENOEXEC",
    spec: (rig) => ({ argv: [file(rig, "text", "echo not a script\n", 0o755)] }),
  },
  {
    what: "a script whose interpreter is missing",
    stage: "exec",
    errno: "ENOENT",
    spec: (rig) => ({ argv: [file(rig, "script", "#!/nowhere/sh\n", 0o755)] }),
  },
  { what: "a path through a file", stage: "exec", errno: "ENOTDIR", spec: () => ({ argv: ["/etc/passwd/true"] }) },
  {
    what: "an argument that is too long",
    stage: "exec",
    errno: "E2BIG",
    spec: () => ({ argv: ["true", "x".repeat(128 * 1024)] }), // MAX_ARG_STRLEN, execve(2)
  },
  { what: "a missing cwd", stage: "cwd", errno: "ENOENT", spec: () => ({ cwd: "/nowhere" }) },
  { what: "a file as cwd", stage: "cwd", errno: "ENOTDIR", spec: () => ({ cwd: "/etc/passwd" }) },
  {
    what: "a cwd that is not open to the user",
    stage: "cwd",
    errno: "EACCES",
    spec: (rig) => ({ cwd: folder(rig, "closed", 0o600) }),
  },
  { what: "an unknown cgroup", stage: "cgroup", errno: "ENOENT", spec: () => ({ cgroup: "/nowhere" }) },
  {
    what: "a directory that is no cgroup",
    stage: "cgroup",
    errno: "ENOENT",
    isolated: "EBADF", // of clone3: no file of the group is opened
    spec: (rig) => ({ cgroup: folder(rig, "ordinary") }),
  },
  {
    what: "a job directory in a missing one",
    stage: "directory",
    errno: "ENOENT",
    spec: (rig) => ({ directory: join(rig.directory, "nowhere", "job") }),
  },
  {
    what: "a symbolic link as job directory",
    stage: "directory",
    errno: "ENOTDIR",
    spec: (rig) => {
      const path = join(rig.directory, "link");
      symlinkSync(folder(rig, "other"), path);
      return { directory: path };
    },
  },
  {
    what: "a job directory in which an output log is already",
    stage: "directory",
    errno: "ENOTEMPTY",
    spec: (rig) => {
      const directory = folder(rig, "used");
      writeFileSync(join(directory, "index"), "jobslog1");
      return { directory };
    },
  },
];

describe.each(variants)("$mode, $build", (variant) => {
  test.each(refusals)(
    "$what fails at stage $stage with $errno, and nothing runs",
    async ({ stage, errno, isolated, spec }) => {
      await using it = await rig(variant);
      const refused = await it.start({ script: "", ...spec(it) }).catch((error: unknown) => error);
      expect(refused).toBeInstanceOf(JobError);
      expect(refused).toMatchObject({ facts: { stage, errno: (variant.mode === "isolated" && isolated) || errno } });
      await until(() => supervisorsOf(it).length === 0, "the supervisor ends");
      const { exit } = await it.run({ script: "exit 3" });
      expect(exit).toMatchObject({ code: 3 });
    },
  );

  test("a job's directory is its own user's, was a spare's, and may take an empty one's place", async () => {
    await using it = await rig(variant);
    const spares = (): string[] => readdirSync(it.directory).filter((name) => name.startsWith(SPARE));
    await until(() => spares().length >= 2, "spares are there");
    const { job } = await it.run({ script: "echo spare" });
    expect(statSync(job.directory)).toMatchObject({ mode: 0o40700 });
    expect(spares()).not.toContain(`${SPARE}${job.supervisor}`);
    expect(job.output()).toBe("spare\n");
    const second = await it.run({ script: "echo found", directory: folder(it, "empty") });
    expect(second.job.output()).toBe("found\n");
  });

  test("starts beyond the spares wait for more of them, and those that are left end with the spawner", async () => {
    await using it = await rig(variant);
    const jobs = await Promise.all(Array.from({ length: 12 }, (_, i) => it.run({ script: `exit ${i}` })));
    expect(jobs.map(({ exit }) => exit["code"])).toEqual(Array.from({ length: 12 }, (_, i) => i));
    it.spawner.refill();
    await it.spawner.close();
    expect(readdirSync(it.directory).filter((name) => name.startsWith(SPARE))).toEqual([]);
  });

  test("arguments of any length that the kernel takes arrive whole", async () => {
    await using it = await rig(variant);
    const words = Array.from({ length: 12 }, (_, i) => String(i % 10).repeat(120_000));
    for (const count of [0, 1, words.length]) {
      const { job } = await it.run({ argv: ["printf", "%s\n", ...words.slice(0, count)] });
      expect(
        job.output() ===
          words
            .slice(0, count)
            .map((word) => `${word}\n`)
            .join("") || count === 0,
      ).toBe(true);
    }
  });

  test("a start that cannot be recorded does not happen, and leaves nothing", async () => {
    await using it = await rig(variant);
    const ran = join(it.directory, "ran");
    for (const padding of [0, 200_000]) {
      const launch = it.launchOf({
        argv: ["touch", ran, ...(padding ? ["x".repeat(100_000), "y".repeat(100_000)] : [])],
      });
      const record = (): void => {
        throw new RangeError("no room");
      };
      await expect(it.spawner.launch(launch, record, () => {})).rejects.toThrow("no room");
      await until(() => supervisorsOf(it).length === 0, "the supervisor ends");
      expect([existsSync(launch.directory), existsSync(ran)]).toEqual([false, false]);
    }
  });

  test("a start whose directory was taken away before its supervisor took it does not happen", async () => {
    await using it = await rig(variant);
    await it.run({ script: "" });
    const spares = await stopSpares(it);
    const launch = it.launchOf({ script: "echo >&3 3>$RIG/ran" });
    const started = attempt(it, launch);
    await until(() => existsSync(launch.directory), "the start is on its way");
    rmSync(launch.directory, { recursive: true });
    for (const pid of [...spares, it.pid()]) process.kill(pid, "SIGCONT");
    expect(await started).toMatchObject({ facts: { stage: "output", errno: "ENOENT" } });
  });

  test("a spare that dies is replaced, and one that dies with a start in its hands fails that start", async () => {
    await using it = await rig(variant);
    await it.run({ script: "" });
    const first = await stopSpares(it);
    for (const spare of first) process.kill(spare, "SIGKILL");
    process.kill(it.pid(), "SIGCONT");
    await until(() => !childrenOf(it.pid()).some((pid) => first.includes(pid)), "they are gone");
    expect((await it.run({ script: "exit 3" })).exit).toMatchObject({ code: 3 });
    const spares = await stopSpares(it);
    const launch = it.launchOf({ script: "" });
    const refused = attempt(it, launch);
    await until(() => existsSync(launch.directory), "one has the start in its hands");
    for (const spare of spares) process.kill(spare, "SIGKILL");
    process.kill(it.pid(), "SIGCONT");
    expect(await refused).toBeInstanceOf(JobError);
    await until(() => !childrenOf(it.pid()).some((pid) => spares.includes(pid)), "they are gone, too");
    expect((await it.run({ script: "exit 4" })).exit).toMatchObject({ code: 4 });
  });

  if (variant.mode === "cgroup")
    test("a job whose files are taken away while it is being born is killed, and its start fails", async () => {
      await using it = await rig(variant);
      const launch = it.launchOf({ script: "sleep 1000" });
      writeFileSync(join(launch.cgroup, "cgroup.freeze"), "1"); // the job is cloned, and goes no further
      const started = attempt(it, launch);
      await until(() => readFileSync(join(launch.cgroup, "cgroup.procs"), "utf8") !== "", "the job is in its cgroup");
      rmSync(launch.directory, { recursive: true });
      writeFileSync(join(launch.cgroup, "cgroup.freeze"), "0");
      expect(await started).toMatchObject({ facts: { stage: "output", errno: "ENOENT" } });
      await until(() => readFileSync(join(launch.cgroup, "cgroup.procs"), "utf8") === "", "nothing of it runs");
    });

  test("a job directory in use is refused, and its job goes on", async () => {
    await using it = await rig(variant);
    const job = await it.start({ script: 'read x < "$CUE"; exit 4' });
    await expect(it.start({ directory: job.directory, script: "" })).rejects.toMatchObject({
      facts: { stage: "directory", errno: "ENOTEMPTY" },
    });
    it.cue();
    expect(await job.ended()).toMatchObject({ code: 4 });
  });

  test("a program on a file system without exec fails at stage exec with EACCES", needsRoot, async () => {
    await using it = await rig(variant);
    const mount = folder(it, "noexec");
    execFileSync("mount", ["-t", "tmpfs", "-o", "noexec,size=64k,mode=755", "tmpfs", mount]);
    try {
      const program = file(it, "noexec/program", "#!/bin/sh\n", 0o755);
      await expect(it.start({ argv: [program] })).rejects.toMatchObject({
        facts: { stage: "exec", errno: "EACCES" },
      });
    } finally {
      execFileSync("umount", [mount]);
    }
  });
});
