import { existsSync, readdirSync, readFileSync, readlinkSync, realpathSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { isRoot, needsRoot } from "../testing/root.ts";
import type { Job, JobSpec } from "./model/job.ts";
import { SPARE } from "./supervisor/spare.ts";
import {
  detaches,
  finished,
  firstLine,
  ignoresTerm,
  modes,
  open,
  outerPid,
  readAll,
  refused,
  run,
  runs,
  sh,
  startReady,
  testDirectory,
  testWorker,
  until,
  waits,
} from "./testing/worker.ts";

const by = "tester";

describe.each(modes)("a job %s", (_mode, options) => {
  test("runs and ends, and its record says so at every point", async () => {
    await using worker = await testWorker(options);
    using files = testDirectory();
    const gate = join(files.path, "gate");
    const spec: JobSpec = {
      ...sh('echo ready; until [ -e "$0" ]; do sleep 0.01; done; exit 7', gate),
      labels: new Map([["team", "a"]]),
      timeLimitMs: 60_000,
    };
    const { id, pid } = await startReady(worker, spec);
    const running = worker.query(id);
    expect(running).toMatchObject({
      id,
      pid,
      state: "running",
      command: "sh",
      args: spec.args,
      envNames: ["PATH", "HOME", "USER", "LOGNAME"],
      cwd: "/",
      labels: spec.labels,
      timeLimitMs: 60_000,
      owner: "tester",
      output: { size: 6, first: 0, dropped: 0 },
    });
    expect(running.ended).toBeUndefined();
    expect(running.endedAt).toBeUndefined();
    expect(runs(pid)).toBe(true);
    expect(realpathSync(`/proc/${pid}/cwd`)).toBe("/");
    const waiting = worker.wait(id);
    open(gate);
    const job = await waiting;
    expect(job).toMatchObject({
      state: "ended",
      pid,
      ended: { how: { kind: "exited", code: 7 }, exitCode: 7, signal: 0, killed: 0 },
    });
    expect(worker.query(id)).toEqual(job);
    expect(await worker.wait(id)).toEqual(job);
    expect(job.usage?.elapsedMs).toBeGreaterThan(0);
    expect(job.usage?.fromCgroup).toBe(worker.cgroup !== undefined);
    expect(worker.cgroup !== undefined && existsSync(join(worker.cgroup, id))).toBe(false);
  });

  test("records its isolation, and has the network, the rlimits, the umask and the oom_score_adj that it asked for", async () => {
    await using worker = await testWorker(options);
    const asked = {
      network: "none",
      privateTmp: true,
      rlimits: [{ name: "nofile", soft: 64, hard: 128 }, { name: "core" }],
      umask: 0o77,
      oomScoreAdj: 7,
    } as const;
    const script =
      "ulimit -Sn; ulimit -Hn; ulimit -c; umask; cat /proc/self/oom_score_adj; ls -A /tmp; cat /proc/net/dev";
    const job = await finished(worker, { ...sh(script), ...asked });
    const [head, devices] = job.text.split("Inter-");
    expect(head).toBe("64\n128\nunlimited\n0077\n7\n");
    expect(devices?.match(/^ *\w+:/gm)).toEqual(["    lo:"]);
    expect(job).toMatchObject(asked);
    expect(worker.query(job.id)).toEqual(without(job));
    function without({ text: _text, ...rest }: typeof job): Job {
      return rest;
    }
    const parts = [...(worker.cgroup === undefined ? [] : ["cgroup"]), "ipc", "mount", "pid", "uts"];
    expect(job.isolation?.toSorted()).toEqual([...parts, "no-capabilities", "no-new-privileges", "seccomp"].toSorted());
    expect(worker.host).toContain(`isolation: ${job.isolation?.join(", ")}`);
  });

  test("shares the namespaces that isolationOff names, and is refused what needs one of its own", async () => {
    await using worker = await testWorker({ ...options, isolationOff: ["mount", "ipc"] });
    const { text, isolation } = await finished(worker, sh("readlink /proc/self/ns/mnt /proc/self/ns/pid"));
    expect(text).toBe(`${readlinkSync("/proc/self/ns/mnt")}\n${readlinkSync("/proc/self/ns/pid")}\n`);
    expect(isolation).toEqual(["uts", "no-new-privileges", "no-capabilities", "seccomp"]);
    const error = await refused(() => worker.start({ ...run("true"), privateTmp: true }));
    expect(error).toMatchObject({ code: "unsupported", field: "private_tmp" });
    expect(worker.host).toContain("isolation: uts, no-new-privileges, no-capabilities, seccomp");
  });

  test("can make a user namespace only if it asks to and the worker allows it", async () => {
    const asks = { ...sh("unshare --user --map-root-user id -u"), userNamespaces: true } as const;
    await using strict = await testWorker(options);
    expect(await refused(() => strict.start(asks))).toMatchObject({
      code: "forbidden",
      field: "allow_user_namespaces",
      message: expect.stringContaining("jobsd --allow-user-namespaces"),
    });
    expect(strict.traces()).toEqual([]);
    if (!isRoot) {
      const opened = testWorker({ ...options, allowUserNamespaces: true });
      await expect(opened).rejects.toMatchObject({ code: "invalid", field: "allow-user-namespaces" });
      return;
    }
    await using worker = await testWorker({ ...options, allowRoot: true, allowUserNamespaces: true });
    const job = await finished(worker, asks);
    expect(job).toMatchObject({ text: "0\n", userNamespaces: true });
    expect(worker.query(job.id)).toMatchObject({ userNamespaces: true });
    expect((await finished(worker, { ...asks, userNamespaces: false })).ended).toMatchObject({ exitCode: 1 });
    expect(await refused(() => worker.start({ ...asks, user: "root" }))).toMatchObject({
      code: "forbidden",
      field: "allow_user_namespaces",
      message: expect.stringContaining("name another user"),
    });
  });

  test("of the worker's own user can neither read the worker's files nor change its programs", needsRoot, async () => {
    using files = testDirectory();
    const [key, program] = [join(files.path, "key"), join(files.path, "program")];
    writeFileSync(key, "secret", { mode: 0o600 });
    writeFileSync(program, "program");
    await using worker = await testWorker({ ...options, allowRoot: true, hidden: [key], sealed: [program] });
    const script = `cat ${key}; ls -A ${worker.stateDir}; cat ${program}; echo x > ${program}`;
    expect((await finished(worker, { ...sh(`exec 2> /dev/null; ${script}`), user: "root" })).text).toBe("program");
    expect(readFileSync(program, "utf8")).toBe("program");
  });

  test.each([0, 1, 127, 255])("that exits with %d has that code", async (code) => {
    await using worker = await testWorker(options);
    const { ended } = await finished(worker, sh(`exit ${code}`));
    expect(ended).toEqual({ how: { kind: "exited", code }, exitCode: code, signal: 0, killed: 0 });
  });

  test.each([1, 9, 15, 34, 64])("that signal %d ends has no exit code", async (signal) => {
    await using worker = await testWorker(options);
    const { ended } = await finished(worker, sh(`kill -${signal} $$`));
    expect(ended).toEqual({ how: { kind: "signalled", signal, coreDumped: false }, exitCode: -1, signal, killed: 0 });
  });

  test("has an end after its start however short it is, 100 at once", async () => {
    await using worker = await testWorker(options);
    const jobs = await Promise.all(
      Array.from({ length: 100 }, async (_, i) => {
        const { job } = await worker.start(sh(`exit ${i}`));
        return worker.wait(job.id);
      }),
    );
    for (const [i, job] of jobs.entries()) {
      expect(worker.query(job.id)).toEqual(job);
      expect(job).toMatchObject({
        state: "ended",
        ended: { exitCode: i },
        pid: expect.any(Number),
        usage: { elapsedMs: expect.any(Number) },
      });
      const [created, started, ended] = [job.createdAt, job.startedAt, job.endedAt].map(
        (date) => date?.getTime() ?? NaN,
      );
      expect(started).toBeGreaterThanOrEqual(created ?? NaN);
      expect(ended).toBeGreaterThanOrEqual(started ?? NaN);
    }
    expect(new Set(jobs.map(({ pid }) => pid)).size).toBe(100);
    await worker.close();
    await using again = await testWorker({ ...options, stateDir: worker.stateDir });
    for (const job of jobs) expect(again.query(job.id)).toEqual(job);
  });

  test("that ends before its start is answered has a complete record", async () => {
    await using worker = await testWorker(options);
    const starting = worker.start(sh("exit 3"));
    const [found] = worker.list({ states: ["starting"], limit: 1 }).jobs;
    await setImmediate(); // The start is on its way now.
    // The daemon is busy, so that the answers to the start and to the wait are both late.
    const deadline = Date.now() + 5000;
    while (!existsSync(join(worker.directory(found?.id ?? ""), "exit")) && Date.now() < deadline);
    const told = Date.now() + 30;
    while (Date.now() < told);
    const { job } = await starting;
    const ended = await worker.wait(job.id);
    expect(ended).toMatchObject({
      id: job.id,
      state: "ended",
      pid: job.pid,
      ended: { exitCode: 3 },
      usage: { elapsedMs: expect.any(Number) },
    });
    expect(worker.query(job.id)).toEqual(ended);
  });

  test("is listed newest first, page after page, and by state and label", async () => {
    await using worker = await testWorker(options);
    const ids: string[] = [];
    for (let i = 0; i < 6; i++) {
      const spec = {
        ...(i % 2 === 0 ? waits : run("true")),
        labels: new Map([
          ["n", String(i)],
          ["even", String(i % 2 === 0)],
        ]),
      };
      const { job } = await worker.start(spec);
      if (i % 2 === 1) await worker.wait(job.id);
      ids.unshift(job.id);
    }
    const listed = (filter: Partial<Parameters<typeof worker.list>[0]>): string[] =>
      worker.list({ limit: 100, ...filter }).jobs.map(({ id }) => id);
    expect(listed({})).toEqual(ids);
    expect(listed({ states: ["running"] })).toEqual(ids.filter((_, i) => i % 2 === 1));
    expect(listed({ states: ["ended"] })).toEqual(ids.filter((_, i) => i % 2 === 0));
    expect(listed({ states: ["ended", "running"] })).toEqual(ids);
    expect(listed({ states: ["starting", "stopping"] })).toEqual([]);
    expect(listed({ labels: new Map([["even", "true"]]) })).toEqual(ids.filter((_, i) => i % 2 === 1));
    expect(
      listed({
        labels: new Map([
          ["even", "true"],
          ["n", "2"],
        ]),
      }),
    ).toEqual([ids[3]]);
    expect(listed({ labels: new Map([["even", ""]]) })).toEqual([]);
    for (const [limit, states] of [[1], [2], [3], [4], [6], [7], [1, ["ended"]], [3, ["ended"]]] as [
      number,
      Job["state"][]?,
    ][]) {
      const pages: string[][] = [];
      for (let pageToken: string | undefined; ;) {
        const page = worker.list({ limit, ...(states && { states }), ...(pageToken !== undefined && { pageToken }) });
        pages.push(page.jobs.map(({ id }) => id));
        if (page.nextPageToken === undefined) break;
        pageToken = page.nextPageToken;
      }
      const all = states ? ids.filter((_, i) => i % 2 === 0) : ids;
      expect(pages.flat()).toEqual(all);
      expect(pages).toHaveLength(Math.ceil(all.length / limit));
    }
    for (const limit of [0, -1, 1001, 1.5, NaN])
      expect(await refused(() => worker.list({ limit }))).toMatchObject({ code: "invalid", field: "limit" });
    expect(await refused(() => worker.list({ limit: 1, pageToken: "x" }))).toMatchObject({
      code: "invalid",
      field: "page_token",
    });
  });

  test("has the environment that it was given and the defaults, and no variable of the daemon's", async () => {
    process.env["JOBS_TEST_SECRET"] = "of the daemon";
    await using worker = await testWorker(options);
    const { text, user } = await finished(worker, run("env"));
    delete process.env["JOBS_TEST_SECRET"];
    const home =
      readFileSync("/etc/passwd", "utf8")
        .split("\n")
        .find((line) => line.startsWith(`${user}:`))
        ?.split(":")[5] ?? "/";
    expect(text.trim().split("\n").toSorted()).toEqual(
      [
        `HOME=${home}`,
        `LOGNAME=${user}`,
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        `USER=${user}`,
      ].toSorted(),
    );
    const env = new Map([
      ["HOME", "/elsewhere"],
      ["EMPTY", ""],
      ["LINES", "a\nb=c"],
      ["\u00e4", "\u{1f600}"],
    ]);
    const job = await finished(worker, { ...run("env"), env });
    expect(job.text).toContain("HOME=/elsewhere\n");
    expect(job.text).toContain("EMPTY=\nLINES=a\nb=c\n\u00e4=\u{1f600}\n");
    expect(job.envNames).toEqual(["PATH", "HOME", "USER", "LOGNAME", "EMPTY", "LINES", "\u00e4"]);
    expect(JSON.stringify(job)).not.toContain('elsewhere",');
  });

  test("finds its command in its own PATH, gets its arguments unchanged, and starts in the directory it asked for", async () => {
    await using worker = await testWorker(options);
    const args = ["", " ", "a b", "$HOME", "'\"", "\n", "-x", "\u00fc"];
    expect((await finished(worker, run("printf", "<%s>", ...args))).text).toBe(args.map((arg) => `<${arg}>`).join(""));
    expect((await finished(worker, { ...run("pwd"), cwd: "/usr/bin" })).text).toBe("/usr/bin\n");
    expect((await finished(worker, { ...run("./env", "-i", "/usr/bin/printf", "here"), cwd: "/usr/bin" })).text).toBe(
      "here",
    );
    expect(
      await refused(() => worker.start({ ...run("printf"), env: new Map([["PATH", "/nowhere:/etc"]]) })),
    ).toMatchObject({ field: "command" });
    expect(
      (await finished(worker, { ...run("printf", "found"), env: new Map([["PATH", "/nowhere:/usr/bin"]]) })).text,
    ).toBe("found");
  });

  test("has a session of its own, no terminal, an empty stdin, and no descriptor but its three", async () => {
    await using worker = await testWorker(options);
    const { text } = await finished(worker, sh('echo $$; cut -d" " -f 5,6,7 /proc/self/stat; cat; ls /proc/$$/fd'));
    const [pid, stat, ...descriptors] = text.trim().split("\n");
    expect(stat).toBe(`${pid} ${pid} 0`);
    expect(descriptors).toEqual(["0", "1", "2"]);
  });
});

describe.each(modes)("stop %s", (_mode, options) => {
  test("ends a job with SIGTERM, and the job says who stopped it", async () => {
    await using worker = await testWorker(options);
    const { id, pid } = await startReady(worker, waits);
    const { job, killed } = await worker.stop(id, { by: "ada" });
    expect(killed).toBe(0);
    expect(job).toMatchObject({
      state: "ended",
      ended: { how: { kind: "stopped", by: "ada", escalated: false }, exitCode: -1, signal: 15, killed: 0 },
    });
    expect(worker.query(id)).toEqual(job);
    expect(runs(pid)).toBe(false);
  });

  test("waits for the grace period, and a job that ends within it keeps its own exit code", async () => {
    await using worker = await testWorker(options);
    const { id } = await startReady(
      worker,
      sh('trap "echo bye; exit 4" TERM; echo ready; while :; do sleep 0.01; done'),
    );
    const { job } = await worker.stop(id, { by });
    expect(job.ended).toEqual({ how: { kind: "stopped", by, escalated: false }, exitCode: 4, signal: 0, killed: 0 });
    expect((await readAll(worker.stream(id, { source: "stdout" }))).text).toBe("ready\nbye\n");
  });

  test("kills what ignores SIGTERM after the grace period, and counts it", async () => {
    await using worker = await testWorker(options);
    const { id, pid } = await startReady(worker, ignoresTerm);
    const { job, killed } = await worker.stop(id, { by, graceMs: 50 });
    // The shell and perhaps its sleep, which SIGTERM may have ended.
    expect(job.ended).toMatchObject({ how: { kind: "stopped", by, escalated: true }, exitCode: -1, signal: 9, killed });
    expect([1, 2]).toContain(killed);
    expect(job.usage?.elapsedMs).toBeGreaterThanOrEqual(50);
    expect(runs(pid)).toBe(false);
  });

  test("sends the signal that was asked for, and kills at once with a grace period of zero or with SIGKILL", async () => {
    await using worker = await testWorker(options);
    const hup = await startReady(
      worker,
      sh('trap "exit 5" HUP; trap "" TERM; echo ready; while :; do sleep 0.01; done'),
    );
    expect((await worker.stop(hup.id, { by, signal: 1 })).job.ended).toMatchObject({ exitCode: 5, killed: 0 });
    for (const how of [{ graceMs: 0 }, { signal: 9 }]) {
      const { id } = await startReady(worker, sh('trap "" TERM; echo ready; exec sleep 1000'));
      expect(await worker.stop(id, { by, ...how })).toMatchObject({
        killed: 1,
        job: { ended: { signal: 9, killed: 1 } },
      });
    }
  });

  test("also ends grandchildren in sessions of their own", async () => {
    await using worker = await testWorker(options);
    const { id, pid, line } = await startReady(worker, detaches);
    const grandchild = outerPid(pid, Number(line));
    expect(runs(grandchild)).toBe(true);
    await worker.stop(id, { by });
    expect([pid, grandchild].filter(runs)).toEqual([]);
  });

  test("ends stopped processes", async () => {
    await using worker = await testWorker(options);
    const { id, pid } = await startReady(worker, waits);
    process.kill(pid, "SIGSTOP");
    expect((await worker.stop(id, { by })).job.ended).toMatchObject({ signal: 15, killed: 0 });
  });

  test("of an ended job succeeds and changes nothing", async () => {
    await using worker = await testWorker(options);
    const before = await finished(worker, sh("exit 3"));
    const { job, killed } = await worker.stop(before.id, { by });
    expect(killed).toBe(0);
    expect({ ...job, text: "" }).toEqual(before);
  });

  test("a second time may shorten the grace period; the job says that the first caller stopped it", async () => {
    await using worker = await testWorker(options);
    const { id } = await startReady(worker, ignoresTerm);
    const first = worker.stop(id, { by: "ada" });
    await until("it is stopping", () => worker.query(id).state === "stopping");
    expect(worker.list({ states: ["stopping"], limit: 1 }).jobs).toMatchObject([{ id }]);
    const second = await worker.stop(id, { by: "bob", graceMs: 0 });
    expect(await first).toEqual(second);
    expect(second.job.ended?.how).toMatchObject({ kind: "stopped", by: "ada" });
  });

  test("100 times at once ends the job once, and all callers get the same answer", async () => {
    await using worker = await testWorker(options);
    const { id } = await startReady(worker, detaches);
    const stopped = await Promise.all(
      Array.from({ length: 100 }, (_, i) => worker.stop(id, { by: `caller ${i}`, graceMs: 5000 })),
    );
    expect(new Set(stopped.map((answer) => JSON.stringify(answer))).size).toBe(1);
    expect(stopped[0]?.job.ended?.how).toEqual({ kind: "stopped", by: "caller 0", escalated: false });
  });

  test("during a start waits for the start, and then ends the job", async () => {
    await using worker = await testWorker(options);
    const starting = worker.start(waits);
    const [found] = worker.list({ states: ["starting"], limit: 1 }).jobs;
    const stopping = worker.stop(found?.id ?? "", { by });
    const { job } = await starting;
    expect(job.id).toBe(found?.id);
    expect((await stopping).job).toMatchObject({
      id: job.id,
      pid: job.pid,
      state: "ended",
      ended: { how: { kind: "stopped" } },
    });
  });

  test("during a start that fails finds no job, as it does afterwards", async () => {
    await using worker = await testWorker(options);
    const starting = refused(() => worker.start(run("/no/such/program")));
    const [found] = worker.list({ states: ["starting"], limit: 1 }).jobs;
    const stopping = refused(() => worker.stop(found?.id ?? "", { by }));
    const waiting = refused(() => worker.wait(found?.id ?? ""));
    expect(await starting).toMatchObject({ code: "invalid", field: "command" });
    for (const error of [await stopping, await waiting])
      expect(error).toMatchObject({ code: "not-found", field: "job_id" });
    expect(worker.traces()).toEqual([]);
  });

  test("goes on when its caller gives up waiting", async () => {
    await using worker = await testWorker(options);
    const { id } = await startReady(worker, ignoresTerm);
    const abort = new AbortController();
    const stopping = refused(() => worker.stop(id, { by, graceMs: 200 }, abort.signal));
    await until("it is stopping", () => worker.query(id).state === "stopping");
    abort.abort();
    expect(await stopping).toMatchObject({ code: "unavailable" });
    expect((await worker.wait(id)).ended).toMatchObject({ how: { kind: "stopped", by, escalated: true } });
  });

  test.each([
    ["signal", { signal: 0 }],
    ["signal", { signal: 65 }],
    ["signal", { signal: 1.5 }],
    ["grace", { graceMs: -1 }],
    ["grace", { graceMs: NaN }],
    ["grace", { graceMs: Infinity }],
  ])("with a bad %s is refused and stops nothing: %o", async (field, how) => {
    await using worker = await testWorker(options);
    const { id } = await startReady(worker, waits);
    expect(await refused(() => worker.stop(id, { by, ...how }))).toMatchObject({ code: "invalid", field });
    expect(worker.query(id).state).toBe("running");
  });
});

describe.each(modes)("when the main process of a job %s ends,", (_mode, options) => {
  test("the job ends: processes that are left are killed and counted, and the main process's result stays", async () => {
    await using worker = await testWorker(options);
    using files = testDirectory();
    const gate = join(files.path, "gate");
    const { job } = await worker.start(
      sh('setsid sleep 1000 & sleep 1000 & echo $!; until [ -e "$0" ]; do sleep 0.01; done; exit 6', gate),
    );
    const sleeper = outerPid(job.pid, Number(await firstLine(worker, job.id)));
    open(gate);
    const { ended } = await worker.wait(job.id);
    expect(ended).toEqual({ how: { kind: "exited", code: 6 }, exitCode: 6, signal: 0, killed: 2 });
    expect(runs(sleeper)).toBe(false);
  });

  test("all output from before is kept, although a grandchild holds the pipes", async () => {
    await using worker = await testWorker(options);
    const { text, ended } = await finished(
      worker,
      sh("setsid sleep 1000 & head -c 300000 /dev/zero | tr '\\0' x; exit 0"),
    );
    expect(text).toBe("x".repeat(300_000));
    expect(ended).toMatchObject({ exitCode: 0, killed: 1 });
  });
});

describe.each(modes)("a time limit %s", (_mode, options) => {
  test("ends a job that runs longer, and the job says so", async () => {
    await using worker = await testWorker(options);
    const job = await finished(worker, { ...waits, timeLimitMs: 100 });
    expect(job.ended).toEqual({ how: { kind: "timed-out", limitMs: 100 }, exitCode: -1, signal: 15, killed: 0 });
    expect(job.usage?.elapsedMs).toBeGreaterThanOrEqual(100);
  });

  test("does nothing to a job that ends earlier; a stop before the limit counts as a stop", async () => {
    await using worker = await testWorker(options);
    expect((await finished(worker, { ...run("true"), timeLimitMs: 60_000 })).ended?.how).toEqual({
      kind: "exited",
      code: 0,
    });
    const { id } = await startReady(worker, { ...waits, timeLimitMs: 60_000 });
    expect((await worker.stop(id, { by })).job.ended?.how).toMatchObject({ kind: "stopped" });
  });
});

describe("wait", () => {
  test("can be given up, and then the job goes on", async () => {
    await using worker = await testWorker();
    const { id } = await startReady(worker, waits);
    const abort = new AbortController();
    const waiting = refused(() => worker.wait(id, abort.signal));
    abort.abort();
    expect(await waiting).toMatchObject({ code: "unavailable" });
    expect(await refused(() => worker.wait(id, abort.signal))).toMatchObject({ code: "unavailable" });
    expect(worker.query(id).state).toBe("running");
  });
});

describe.each(modes)("a request id %s", (_mode, options) => {
  const spec = { ...sh("echo ready; exec sleep 1000"), requestId: "r1" };

  test("starts one job however often it is sent: in turn, at once, after the job's end, after a restart", async () => {
    await using worker = await testWorker(options);
    const { job, alreadyStarted } = await worker.start(spec);
    expect(alreadyStarted).toBe(false);
    expect(await worker.start({ ...spec, command: "another" })).toMatchObject({
      job: { id: job.id, state: "running", pid: job.pid },
      alreadyStarted: true,
    });
    const many = await Promise.all(Array.from({ length: 50 }, () => worker.start({ ...spec, requestId: "r2" })));
    expect(new Set(many.map((answer) => answer.job.id)).size).toBe(1);
    expect(many.filter((answer) => !answer.alreadyStarted)).toHaveLength(1);
    const { job: ended } = await worker.stop(job.id, { by });
    expect(await worker.start(spec)).toEqual({ job: ended, alreadyStarted: true });
    expect(worker.list({ limit: 100 }).jobs).toHaveLength(2);
    await worker.close();
    await using again = await testWorker({ ...options, stateDir: worker.stateDir });
    expect(await again.start(spec)).toEqual({ job: ended, alreadyStarted: true });
  });

  test("belongs to its owner: another owner's start with the same id is another job", async () => {
    await using worker = await testWorker(options);
    const [mine, yours] = await Promise.all([worker.start(spec), worker.start({ ...spec, owner: "other" })]);
    expect(mine.job.id).not.toBe(yours.job.id);
    expect([mine, yours].map(({ alreadyStarted }) => alreadyStarted)).toEqual([false, false]);
  });

  test("of a failed start can be used again; everybody who sent it meanwhile gets the reason", async () => {
    await using worker = await testWorker(options);
    const bad = { ...spec, command: "/no/such/program" };
    const errors = await Promise.all(Array.from({ length: 10 }, () => refused(() => worker.start(bad))));
    expect(new Set(errors.map(({ message }) => message)).size).toBe(1);
    expect(worker.traces()).toEqual([]);
    expect((await worker.start(spec)).alreadyStarted).toBe(false);
  });
});

describe("a worker", () => {
  test("runs at most as many jobs as it may; a refused start does not count, and an end makes room", async () => {
    await using worker = await testWorker({ maxJobs: 3 });
    for (let i = 0; i < 5; i++) await refused(() => worker.start(run("/no/such/program")));
    const started = await Promise.allSettled(Array.from({ length: 10 }, () => worker.start(waits)));
    const jobs = started.flatMap((result) => (result.status === "fulfilled" ? [result.value.job] : []));
    expect(jobs).toHaveLength(3);
    for (const result of started)
      if (result.status === "rejected") expect(result.reason).toMatchObject({ code: "exhausted" });
    expect((await refused(() => worker.start(waits))).message).toContain("--max-jobs");
    expect(worker.list({ limit: 100 }).jobs).toHaveLength(3);
    await worker.stop(jobs[0]?.id ?? "", { by });
    await worker.start(run("true"));
  });

  test("without cgroup says so in the line about its host and in its jobs' warnings; with cgroup it has no warning", async () => {
    for (const [mode, options] of modes) {
      await using worker = await testWorker(options);
      const { warnings } = await finished(worker, run("true"));
      if (mode === "without cgroup") {
        expect(worker.host).toMatch(/no usable cgroup v2.*no limits.*\(cgroup v2 is not mounted at \/tmp\)/);
        expect(warnings).toEqual([expect.stringContaining("no usable cgroup v2")]);
      } else {
        expect(worker.host).toMatch(/^cgroup v2 at \/.+, controllers: /);
        expect(warnings).toEqual([]);
      }
    }
  });

  test("puts its name in front of its jobs' ids, which sort by time", async () => {
    await using worker = await testWorker({ name: "w-1" });
    const ids: string[] = [];
    for (let i = 0; i < 3; i++) {
      ids.push((await finished(worker, run("true"))).id);
      const now = Date.now();
      await until("the clock has moved on", () => Date.now() > now);
    }
    for (const id of ids) expect(id).toMatch(/^w-1\.[0-9a-hjkmnp-tv-z]{26}$/);
    expect(ids.toSorted()).toEqual(ids);
    for (const name of ["", "W", "a.b", "-a", "../x", "x".repeat(33)])
      expect(await refused(() => testWorker({ name }))).toMatchObject({ code: "invalid", field: "name" });
  });

  test("does not open without its supervisor, nor with a state directory that cannot be made", async () => {
    const error = await refused(() => testWorker({ supervisor: "/no/such/supervisor" }));
    expect(error).toMatchObject({ code: "unavailable" });
    expect(error.message).toContain("/no/such/supervisor");
    for (const stateDir of ["/etc/passwd", "/etc/passwd/jobs"])
      expect(await refused(() => testWorker({ stateDir }))).toMatchObject({ code: "unavailable" });
  });

  test("that closes finishes the starts under way, refuses new ones, and ends its waits", async () => {
    await using worker = await testWorker();
    const { id } = await startReady(worker, waits);
    const waiting = refused(() => worker.wait(id));
    const starts = [worker.start(waits), worker.start({ ...waits, requestId: "r" })];
    const failing = refused(() => worker.start(run("/no/such/program")));
    const closing = worker.close();
    expect(await refused(() => worker.start(waits))).toMatchObject({ code: "unavailable" });
    const ids = (await Promise.all(starts)).map(({ job }) => job.id);
    expect(await failing).toMatchObject({ code: "invalid", field: "command" });
    await closing;
    expect(await waiting).toMatchObject({ code: "unavailable" });
    await using next = await testWorker({ stateDir: worker.stateDir });
    const found = next.list({ limit: 10 }).jobs;
    expect(new Map(found.map((job) => [job.id, job.state]))).toEqual(
      new Map([id, ...ids].map((each) => [each, "running"])),
    );
  });

  test("has no zombie, descriptor or process left after 50 jobs", async () => {
    await using worker = await testWorker();
    const mine = (): number => readdirSync("/proc/self/fd").filter((fd) => !isSpares(fd)).length;
    await finished(worker, run("true"));
    const before = mine();
    await Promise.all(Array.from({ length: 50 }, () => finished(worker, sh("sleep 0 & exit 0"))));
    expect(mine()).toBeLessThanOrEqual(before);
    await until("no child of a child of this process is left", () =>
      descendants(process.pid).every((pid) => runs(pid) && !children(pid).some((child) => !runs(child))),
    );
    expect(worker.traces().filter((trace) => trace.startsWith("cgroup:"))).toEqual([]);
  });
});

/** The open FIFOs of spare supervisors, which are closed once they have a job. */
function isSpares(fd: string): boolean {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`).includes(SPARE);
  } catch {
    return false;
  }
}

function children(pid: number): number[] {
  try {
    return readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").split(" ").filter(Boolean).map(Number);
  } catch {
    return [];
  }
}

function descendants(pid: number): number[] {
  return children(pid).flatMap((child) => [child].concat(descendants(child)));
}

test("a job can neither write its own cgroup nor read its own log or record", needsRoot, async () => {
  await using worker = await testWorker();
  const group = worker.cgroup ?? worker.stateDir;
  const { text } = await finished(
    worker,
    sh('exec 2>&1; echo 0 > "$0/cgroup.procs" || echo no; ls "$1" || echo no', group, worker.stateDir),
  );
  expect(text.match(/^no$/gm)).toHaveLength(2);
});
