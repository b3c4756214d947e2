import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { createVolume, type Daemon, startDaemon } from "./testing/daemon.ts";
import { issueCertificates } from "./testing/certificates.ts";

const DEADLINE = { timeout: 60_000, interval: 500 };

const made = new AsyncDisposableStack();
let daemon: Daemon;
beforeAll(async () => {
  daemon = made.use(await startDaemon());
});
afterAll(() => made.disposeAsync());

function run(...args: readonly string[]) {
  return daemon.jobs("writer", "run", ...args);
}

/** The processes of the container whose command line has the text. */
async function processes(text: string): Promise<string[]> {
  const script = 'for file in /proc/[0-9]*/cmdline; do { tr "\\0" " " < $file; echo; } 2> /dev/null; done';
  return (await daemon.inside("sh", "-c", script)).split("\n").filter((line) => line.includes(text));
}

/** The cgroups of jobs that are still there; not the newest four, which are made ahead. */
async function cgroups(): Promise<string[]> {
  const groups = await daemon.inside("sh", "-c", "ls -d /sys/fs/cgroup/jobs-*/*/ || :");
  return groups.split("\n").filter(Boolean).slice(0, -4);
}

describe("a job ends as its command does", () => {
  it.each([0, 1, 2, 42, 124, 125, 126, 127, 128, 137, 254, 255])("with the exit code %i", async (code) => {
    expect(await run("--", "sh", "-c", `exit ${code}`)).toEqual({ code, stdout: "", stderr: "" });
  });

  it.each([
    ["HUP", 1],
    ["INT", 2],
    ["QUIT", 3],
    ["ABRT", 6],
    ["KILL", 9],
    ["USR1", 10],
    ["SEGV", 11],
    ["TERM", 15],
  ])("by SIG%s", async (name, number) => {
    const id = await daemon.start("--", "sh", "-c", `kill -${name} $$; sleep 1000`);
    expect(await daemon.jobs("reader", "wait", id)).toMatchObject({
      code: 128 + number,
      stdout: expect.stringContaining(`${id} killed by SIG${name}`),
    });
    const { exited, exitCode, job } = await daemon.query(id);
    expect({ exited, exitCode, signal: job.ended?.signal }).toEqual({ exited: true, exitCode: -1, signal: number });
  });
});

describe("a command that cannot run is told at once, and leaves nothing", () => {
  beforeAll(async () => {
    await daemon.put("/programs/no-interpreter", "#!/nonexistent/interpreter\n", 0o755);
    await daemon.put("/programs/no-program", "echo this has no first line that says how to run it\n", 0o755);
    await daemon.put("/programs/not-executable", "#!/bin/sh\n");
  });

  it.each([
    ["that is not there", ["--", "nosuchcommand"], 127, '"nosuchcommand" was not found'],
    ["whose interpreter is not there", ["--", "/programs/no-interpreter"], 127, "or its interpreter was not"],
    ["that is not executable", ["--", "/programs/not-executable"], 126, "is not executable for 21000"],
    ["that is a directory", ["--", "/programs"], 126, "is not executable for 21000"],
    ["that is no program", ["--", "/programs/no-program"], 126, "is no program; a script needs a #! line"],
    [
      "in a directory that is not there",
      ["--cwd", "/nonexistent", "--", "true"],
      125,
      'cwd: "/nonexistent" is no directory here (ENOENT)',
    ],
    ["of a user that is not there", ["--user", "nosuchuser", "--", "true"], 125, 'there is no user "nosuchuser"'],
    ["as root", ["--user", "root", "--", "true"], 125, "this worker runs no job as root (jobsd --allow-root)"],
    ["as a user that is not allowed", ["--user", "daemon", "--", "true"], 125, "(jobsd --allow-user daemon)"],
    ["with a group that is not allowed", ["--group", "shadow", "--", "true"], 125, "(jobsd --allow-group shadow)"],
  ])("one %s", async (_, args, code, message) => {
    const before = await daemon.jobs("reader", "list", "-q", "--limit", "0");
    expect(await run(...args)).toEqual({ code, stdout: "", stderr: expect.stringContaining(message) });
    expect(await daemon.jobs("reader", "list", "-q", "--limit", "0")).toEqual(before);
  });

  it("not even a cgroup", async () => {
    expect(await cgroups()).toEqual([]);
  });
});

describe("jobs that name no user", () => {
  it("share neither a uid, nor a group, nor a file, and leave none", async () => {
    await daemon.inside("sed", "-i", "s/^root:x:0:.*/root:x:0:nobody/", "/etc/group");
    const places = "/tmp /var/tmp /dev/shm /run/lock";
    const script = `id -u; id -G; for place in ${places}; do cat $place/mine 2> /dev/null; echo mine > $place/mine; done
      echo $HOME; exec sleep 54321`;
    const ids = [await daemon.start("--", "sh", "-c", script), await daemon.start("--", "sh", "-c", script)];
    const users = await Promise.all(
      ids.map(async (id) => {
        const { user, group } = (await daemon.query(id)).job;
        const told = `${user}\n${group}\n/tmp\n`;
        await vi.waitFor(async () => expect((await daemon.jobs("reader", "stream", id)).stdout).toBe(told), DEADLINE);
        return Number(user);
      }),
    );
    expect(new Set(users).size).toBe(2);
    for (const uid of users) expect(uid - 2_100_000_000).toBeLessThan(65_536);
    expect(await daemon.jobs("writer", "stop", "--grace", "0", ...ids)).toMatchObject({ code: 0 });
    const left = users.map((uid) => `-uid ${uid} -o -gid ${uid}`).join(" -o ");
    expect(
      await daemon.inside("sh", "-c", `{ find / -xdev ${left}; find ${places} -name mine; } 2> /dev/null; true`),
    ).toBe("");
  });
});

describe("a stop", () => {
  it("lets a job that obeys end by itself, in its own way", async () => {
    const script = "trap 'echo cleaned up; exit 7' TERM; echo up; while :; do sleep 0.2; done";
    const running = daemon.launch("writer", "run", "--label", "test=obeys", "--", "sh", "-c", script);
    await vi.waitFor(() => expect(running.stdout()).toBe("up\n"), DEADLINE);
    const id = (await daemon.jobs("reader", "list", "-q", "--label", "test=obeys")).stdout.trim();
    const stopped = await daemon.jobs("writer", "stop", "--grace", "60s", id);
    expect(stopped).toEqual({ code: 0, stdout: `${id}\n`, stderr: `jobsctl: job ${id}: stopped by writer\n` });
    expect(await running.ended).toMatchObject({ code: 7, stdout: "up\ncleaned up\n" });
    expect((await daemon.query(id)).job.ended).toMatchObject({
      stopped: { by: "writer", escalated: false },
      exitCode: 7,
      killed: 0,
    });
  });

  it("kills after the grace period, and not before, what ignores it", async () => {
    const script = "trap '' TERM; echo up; while :; do sleep 0.2; done";
    const id = await daemon.start("--", "sh", "-c", script);
    await vi.waitFor(async () => expect((await daemon.jobs("reader", "stream", id)).stdout).toBe("up\n"), DEADLINE);
    const askedAt = performance.now();
    const stopped = await daemon.jobs("writer", "stop", "--grace", "3s", id);
    expect(performance.now() - askedAt).toBeGreaterThan(3_000);
    expect(stopped).toMatchObject({
      code: 0,
      stderr: expect.stringContaining("stopped by writer and had to be killed"),
    });
    const { job } = await daemon.query(id);
    expect(job.ended).toMatchObject({ stopped: { by: "writer", escalated: true }, signal: 9 });
    expect(await daemon.jobs("writer", "stop", id)).toMatchObject({ code: 0, stdout: `${id}\n` });
  });

  it("reaches grandchildren in sessions of their own", async () => {
    const script = `trap '' TERM; setsid sh -c "trap '' TERM; setsid sleep 98765 & setsid sleep 98765 & wait" & echo up; wait`;
    const id = await daemon.start("--", "sh", "-c", script);
    await expect
      .poll(async () => (await processes("sleep 98765")).filter((line) => line.startsWith("sleep")).length, DEADLINE)
      .toBe(2);
    expect(await daemon.jobs("writer", "stop", "--grace", "500ms", id)).toMatchObject({ code: 0 });
    expect(await processes("98765")).toEqual([]);
  });

  it("ends a job whose supervisor cannot be told to", async () => {
    const id = await daemon.start("--", "sh", "-c", "trap '' TERM; setsid sleep 65432 & echo up; wait; wait");
    await expect.poll(() => processes("sleep 65432"), DEADLINE).not.toEqual([]);
    await daemon.inside("rm", `/var/lib/jobs/jobs/${id}/control`);
    expect(await daemon.jobs("writer", "stop", "--grace", "500ms", id)).toMatchObject({ code: 0 });
    expect(await processes("65432")).toEqual([]);
    const { job } = await daemon.query(id);
    expect(job.ended).toMatchObject({ stopped: { escalated: true } });
    expect(job.warnings).toContainEqual(expect.stringContaining("the daemon stops it"));
  });

  it("is not needed for what a job leaves behind when its main process ends", async () => {
    const ran = await run("--label", "test=leaves", "--", "sh", "-c", "setsid sleep 87654 & echo done; exit 4");
    expect(ran).toMatchObject({ code: 4, stdout: "done\n" });
    expect(await processes("sleep 87654")).toEqual([]);
    const id = (await daemon.jobs("reader", "list", "-q", "--label", "test=leaves")).stdout.trim();
    expect((await daemon.query(id)).job.ended).toMatchObject({ exitCode: 4, killed: 1 });
  });

  it("counts a process whose name looks like the state of one that has ended", async () => {
    const child = `$0 = "x\\n) Z 1"; $SIG{TERM} = "IGNORE"; close W; sleep 1000`;
    const program = `pipe(R, W); if (!fork) { ${child} } close W; <R>; exit 4`;
    expect(await run("--label", "test=hides", "--", "perl", "-e", program)).toMatchObject({ code: 4 });
    const id = (await daemon.jobs("reader", "list", "-q", "--label", "test=hides")).stdout.trim();
    expect((await daemon.query(id)).job.ended).toMatchObject({ exitCode: 4, killed: 1 });
  });
});

describe("a time limit", () => {
  it("ends a job, with all its children, and is told as such", async () => {
    const script = "trap 'echo asked' TERM; setsid sleep 76543 & echo up; wait; wait";
    const ran = await run("--time-limit", "2s", "--", "sh", "-c", script);
    expect(ran).toMatchObject({ code: 124, stderr: expect.stringContaining("timed out after 2s") });
    expect(await processes("sleep 76543")).toEqual([]);
  });

  it("leaves alone a job that is in time", async () => {
    expect(await run("--time-limit", "5m", "--", "sh", "-c", "exit 3")).toEqual({ code: 3, stdout: "", stderr: "" });
  });
});

describe("two hundred jobs at once", () => {
  it("all run, and all end", { timeout: 300_000 }, async () => {
    const gate = await daemon.gate();
    const command = ["--label", "test=many", "--", "sh", "-c", `read go < ${gate.path}; exit $0`];
    const ids: string[] = [];
    const codes = Array.from({ length: 200 }, (_, at) => at);
    const left = codes.values();
    const starter = async (): Promise<void> => {
      for (const code of left) ids[code] = await daemon.start(...command, String(code));
    };
    await Promise.all(Array.from({ length: 8 }, starter));
    expect(new Set(ids).size).toBe(200);
    const listed = await daemon.jobs("reader", "list", "-q", "--label", "test=many", "--state", "running", "-n", "0");
    expect(new Set(listed.stdout.trim().split("\n"))).toEqual(new Set(ids));
    await gate.open();
    const { code, stdout } = await daemon.jobs("reader", "wait", ...ids);
    expect({ code, ends: stdout.trim().split("\n") }).toEqual({
      code: 1,
      ends: codes.map((code) => `${ids[code]} exited with code ${code}`),
    });
    expect(await cgroups()).toEqual([]);
  });
});

describe("a restart of the container on the same volume", () => {
  it("has all records and logs as they were, and tells what was running as lost", { timeout: 300_000 }, async () => {
    await using certificates = await issueCertificates();
    await using volume = await createVolume();
    const options = { certificates, volume: volume.name };
    const { ids, answers } = await (async () => {
      await using first = await startDaemon(options);
      const printed = await first.start("--label", "kind=printed", "--", "sh", "-c", "echo out; echo err >&2; exit 3");
      const long = await first.start("--", "sh", "-c", "seq 1 20000; kill -KILL $$");
      const stopped = await first.start("--request-id", "once", "--", "sleep", "1000");
      await first.jobs("writer", "stop", "--grace", "10s", stopped);
      await first.jobs("reader", "wait", printed, long);
      const running = await first.start("--", "sh", "-c", "echo half; exec sleep 1000");
      await vi.waitFor(async () => expect((await first.query(running)).job.output.size).toBe("5"), DEADLINE);
      const ids = { printed, long, stopped, running };
      const answers = await recall(first, ids);
      expect(await first.terminate(30_000)).toBe(0);
      return { ids, answers };
    })();

    await using second = await startDaemon(options);
    expect(await recall(second, ids)).toEqual(answers);
    expect(await second.jobs("writer", "start", "--request-id", "once", "--", "sleep", "1000")).toMatchObject({
      code: 0,
      stdout: `${ids.stopped}\n`,
    });
    await vi.waitFor(async () => expect((await second.query(ids.running)).job.state).toBe("STATE_ENDED"), DEADLINE);
    const { job } = await second.query(ids.running);
    expect(job.ended).toMatchObject({ lost: { reason: "the container was restarted" }, exitCode: -1 });
    expect(await second.jobs("reader", "stream", "--follow", ids.running)).toEqual({
      code: 0,
      stdout: "half\n",
      stderr: "",
    });
    expect(await second.jobs("writer", "run", "--", "echo", "again")).toEqual({
      code: 0,
      stdout: "again\n",
      stderr: "",
    });
  });
});

/** What a daemon knows of jobs that have ended. */
async function recall(
  of: Daemon,
  { printed, long, stopped }: Readonly<Record<"printed" | "long" | "stopped", string>>,
) {
  const ids = [printed, long, stopped];
  return {
    queries: await Promise.all(ids.map((id) => of.query(id))),
    outputs: await Promise.all(ids.map((id) => of.jobs("reader", "stream", id))),
    tail: await of.jobs("reader", "stream", "--tail", "2", long),
    offset: await of.jobs("reader", "stream", "--offset", "100000", long),
    waits: await Promise.all(ids.map((id) => of.jobs("reader", "wait", id))),
    labelled: await of.jobs("reader", "list", "-q", "--label", "kind=printed"),
  };
}
