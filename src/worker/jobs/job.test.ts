import { existsSync, readFileSync, readlinkSync, realpathSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { isRoot, needsRoot } from "../../testing/root.ts";
import type { Job, JobSpec } from "../model/job.ts";
import {
  finished,
  modes,
  open,
  refused,
  run,
  runs,
  sh,
  startReady,
  testDirectory,
  testWorker,
  waits,
} from "../testing/worker.ts";

/** Without root the namespaces are made in a user namespace. */
const own = isRoot ? [] : ["user"];

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
    const parts = [...own, ...(worker.cgroup === undefined ? [] : ["cgroup"]), "ipc", "mount", "pid", "uts"];
    expect(job.isolation?.toSorted()).toEqual([...parts, "no-capabilities", "no-new-privileges", "seccomp"].toSorted());
    expect(worker.host).toContain(`isolation: ${job.isolation?.join(", ")}`);
  });

  test("shares the namespaces that isolationOff names, and is refused what needs one of its own", async () => {
    await using worker = await testWorker({ ...options, isolationOff: ["mount", "ipc"] });
    const { text, isolation } = await finished(worker, sh("readlink /proc/self/ns/mnt /proc/self/ns/pid"));
    expect(text).toBe(`${readlinkSync("/proc/self/ns/mnt")}\n${readlinkSync("/proc/self/ns/pid")}\n`);
    const parts = [...own, "uts", "no-new-privileges", "no-capabilities", "seccomp"];
    expect(isolation).toEqual(parts);
    const error = await refused(() => worker.start({ ...run("true"), privateTmp: true }));
    expect(error).toMatchObject({ code: "unsupported", field: "private_tmp" });
    expect(worker.host).toContain(`isolation: ${parts.join(", ")}`);
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

test("a job can neither write its own cgroup nor read its own log or record", needsRoot, async () => {
  await using worker = await testWorker();
  const group = worker.cgroup ?? worker.stateDir;
  const { text } = await finished(
    worker,
    sh('exec 2>&1; echo 0 > "$0/cgroup.procs" || echo no; ls "$1" || echo no', group, worker.stateDir),
  );
  expect(text.match(/^no$/gm)).toHaveLength(2);
});
