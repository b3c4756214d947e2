import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { needsRoot } from "../../testing/root.ts";
import type { Job, JobSpec } from "../model/job.ts";
import type { UidRange } from "../model/options.ts";
import {
  finished,
  modes,
  refused,
  run,
  sh,
  startReady,
  testDirectory,
  someUids,
  testWorker,
  until,
  waits,
} from "../testing/worker.ts";
import { openUids, rangeOf } from "./uids.ts";

const uidOf = ({ user }: Job): number => Number(user);

/** A process of nobody's under a uid. */
function stranger(uid: number): Disposable {
  const child = spawn("sleep", ["1000"], { uid, gid: uid, stdio: "ignore" });
  return { [Symbol.dispose]: () => void child.kill("SIGKILL") };
}

test("uids are given in turn, from any on, or behind the last one; those that are held are passed over", () => {
  const range = { first: 10, last: 13 };
  const uids = openUids(range, 12);
  uids.hold("10");
  uids.hold("nobody");
  expect([uids.take(), uids.take(), uids.take(), uids.take()]).toEqual([13, 11, 12, 13]);
  uids.free("10");
  expect(uids.take()).toBe(10);
  const begins = new Set(Array.from({ length: 200 }, () => openUids(range, undefined).take()));
  expect(begins).toEqual(new Set([10, 11, 12, 13]));
});

describe.each(modes)("a job %s", needsRoot, (_mode, options) => {
  test("has a uid and a gid of its own, no other group, and a home that ends with it", async () => {
    const jobUids = someUids(3);
    await using worker = await testWorker({ ...options, jobUids });
    const script = sh("id -u; id -g; id -G; echo $HOME $USER $LOGNAME; echo $HOME/*; echo x > $HOME/x");
    const jobs = [];
    for (let i = 0; i < 4; i++) jobs.push(await finished(worker, script));
    for (const { text, user, group, privateTmp, warnings } of jobs) {
      expect(text).toBe(`${user}\n${user}\n${user}\n/tmp ${user} ${user}\n/tmp/*\n`);
      expect({ group, privateTmp }).toEqual({ group: user, privateTmp: true });
      expect(warnings.join()).not.toContain("/tmp");
    }
    const [first = 0, ...others] = jobs.map(uidOf);
    const { first: low, last: high } = jobUids;
    const after = (uid: number): number => (uid === high ? low : uid + 1);
    expect(others).toEqual([after(first), after(after(first)), first]);
  });

  test("gets no uid that another job has, and none is started when all have jobs", async () => {
    await using worker = await testWorker({ ...options, jobUids: someUids(2) });
    const [one, two] = [await startReady(worker, waits), await startReady(worker, waits)];
    const before = worker.traces();
    expect(await refused(() => worker.start(waits))).toMatchObject({
      code: "exhausted",
      message: expect.stringContaining("--job-uids"),
    });
    expect(worker.traces()).toEqual(before);
    const { user } = await worker.stop(one.id, { by: "tester", graceMs: 0 }).then(({ job }) => job);
    expect((await finished(worker, run("true"))).user).toBe(user);
    expect(worker.query(two.id).state).toBe("running");
  });

  test("gets no uid that a stranger's process has, also one that has come since the daemon was started", async () => {
    const jobUids = someUids(4);
    using _before = stranger(jobUids.first + 1);
    await using worker = await testWorker({ ...options, jobUids });
    using _since = stranger(jobUids.first + 2);
    const uids = new Set<number>();
    for (let i = 0; i < 6; i++) uids.add(uidOf(await finished(worker, run("true"))));
    expect(uids).toEqual(new Set([jobUids.first, jobUids.last]));
    expect(worker.list({ limit: 100 }).jobs).toHaveLength(6);
  });

  test("gets no uid that a job of another daemon has on this host", async () => {
    const jobUids = someUids(24);
    await using one = await testWorker({ ...options, jobUids });
    await using other = await testWorker({ ...options, jobUids });
    const started = await Promise.all(
      Array.from({ length: 24 }, (_, i) => (i % 2 === 0 ? one : other).start(waits).then(({ job }) => uidOf(job))),
    );
    expect(new Set(started).size).toBe(24);
    for (const worker of [one, other])
      expect(await refused(() => worker.start(waits))).toMatchObject({ code: "exhausted" });
  });

  test("of the next daemon goes on behind the last one's, and past those that still run", async () => {
    const jobUids = someUids(3);
    const stateDir = testDirectory();
    await using worker = await testWorker({ ...options, jobUids, stateDir: stateDir.path });
    const { id } = await startReady(worker, waits);
    const long = uidOf(worker.query(id));
    const last = uidOf(await finished(worker, run("true")));
    await worker.close();
    await using again = await testWorker({ ...options, jobUids, stateDir: worker.stateDir });
    const next = uidOf(await finished(again, run("true")));
    expect(new Set([long, last, next]).size).toBe(3);
    expect(uidOf(await finished(again, run("true")))).toBe(last);
  });

  test("leaves no file where everybody may write, nor sees one there", async () => {
    await using worker = await testWorker({ ...options, jobUids: someUids(1) });
    const name = `left-${crypto.randomUUID()}`;
    const places = "/tmp /var/tmp /dev/shm /run/lock /var/crash";
    const write = sh(
      `for place in ${places}; do if [ -d $place ]; then echo x > $place/${name} || echo $place; fi; done`,
    );
    const look = sh(`for place in ${places}; do find $place -mindepth 1; done 2> /dev/null; true`);
    expect((await finished(worker, write)).text).toBe("");
    for (const place of places.split(" ")) expect(existsSync(join(place, name))).toBe(false);
    expect((await finished(worker, look)).text).toBe("");
  });

  test("has the limits of its uid for itself: what others run does not count", async () => {
    await using worker = await testWorker({ ...options, jobUids: someUids(3) });
    const script = "sleep 1000 & sleep 1000 & sed -n 's/^Max processes *//p' /proc/self/limits; wait";
    const spec: JobSpec = { ...sh(script), rlimits: [{ name: "nproc", soft: 4, hard: 4 }] };
    for (let i = 0; i < 3; i++) expect((await startReady(worker, spec)).line).toMatch(/^4 +4 /);
  });

  test("that cannot be started leaves nothing, nor does a daemon that ends, where its files are in a /tmp that it covers", async () => {
    await using worker = await testWorker({ ...options, jobUids: someUids(3) });
    expect(worker.stateDir).toMatch(/^\/tmp\//);
    await refused(() => worker.start(run("/no/such/program")));
    expect(worker.traces()).toEqual([]);
    await worker.close();
    expect(readdirSync(join(worker.stateDir, "jobs", ".spares"))).toEqual([]);
  });

  test("that names an allowed user has the host's /tmp, unless it asks for its own", async () => {
    using directory = testDirectory();
    const file = join(directory.path, "file");
    writeFileSync(file, "the host's\n");
    await using worker = await testWorker({ ...options, jobUids: someUids(3), allowUsers: ["nobody"] });
    const spec: JobSpec = { ...sh('cat "$0" 2> /dev/null || id -un', file), user: "nobody" };
    expect(await finished(worker, spec)).toMatchObject({ text: "the host's\n", privateTmp: false });
    const own = await finished(worker, { ...spec, privateTmp: true });
    expect(own.text).toBe("nobody\n");
  });

  test("has the host's /tmp where there is no mount namespace, and no home there, and says so", async () => {
    await using worker = await testWorker({ ...options, jobUids: someUids(3), isolationOff: ["mount"] });
    const job = await finished(worker, sh("echo $HOME; id -u"));
    expect(job.text).toBe(`/\n${job.user}\n`);
    expect(job).toMatchObject({ privateTmp: false, warnings: expect.arrayContaining([expect.stringMatching("/tmp")]) });
  });
});

describe("a daemon starts with uids that", needsRoot, () => {
  /** What rangeOf() finds, in a user namespace with this map. */
  async function inNamespace(map: string, jobUids?: UidRange): Promise<unknown> {
    const script = `import { rangeOf } from ${JSON.stringify(join(import.meta.dirname, "uids.ts"))};
      let told; try { told = rangeOf(${JSON.stringify({ jobUids })}); } catch (error) { told = error.message; }
      console.log(JSON.stringify(told));`;
    const wait = 'read go; exec "$0" "$@"';
    const node = [process.execPath, "--input-type=module", "--eval", script];
    const child = spawn("unshare", ["--user", "sh", "-c", wait, ...node], { stdio: ["pipe", "pipe", "inherit"] });
    let text = "";
    child.stdout.on("data", (more: Buffer) => (text += more.toString()));
    const own = readFileSync("/proc/self/uid_map", "utf8");
    await until("it has a namespace", () => readFileSync(`/proc/${child.pid}/uid_map`, "utf8") !== own);
    for (const file of ["uid_map", "gid_map"]) writeFileSync(`/proc/${child.pid}/${file}`, map);
    child.stdin.end("go\n");
    await once(child, "close");
    return JSON.parse(text);
  }

  test("the host has, or that a user namespace of 65,536 ids has; with fewer it does not start", async () => {
    expect(rangeOf({})).toEqual({ first: 2_100_000_000, last: 2_100_065_535 });
    expect(await inNamespace("0 0 65536")).toEqual({ first: 61_184, last: 65_519 });
    expect(await inNamespace("0 0 1000")).toMatch(
      /2100000000-2100065535: the worker's user namespace.*--job-uids.*--user/,
    );
    expect(await inNamespace("0 0 3000", { first: 2500, last: 2999 })).toEqual({ first: 2500, last: 2999 });
    expect(await inNamespace("0 0 3000", { first: 2500, last: 3000 })).toMatch(
      /2500-3000: the worker's user namespace/,
    );
  });

  test("no account has", async () => {
    const error = await refused(() => rangeOf({ jobUids: { first: 65_530, last: 65_540 } }));
    expect(error.message).toMatch(/\/etc\/passwd has nobody with 65534.*--job-uids/);
  });

  test("are not asked for beside a user for all jobs", async () => {
    expect(rangeOf({ user: "nobody" })).toBeUndefined();
    const error = await refused(() => rangeOf({ user: "nobody", jobUids: { first: 5, last: 6 } }));
    expect(error.message).toMatch(/leave out one/);
  });
});
