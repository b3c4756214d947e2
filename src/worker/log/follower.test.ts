import { createHash, randomBytes } from "node:crypto";
import { closeSync, openSync, readFileSync, statSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { SPARE } from "../supervisor/spare.ts";
import {
  open,
  openDescriptors,
  readAll,
  run,
  sh,
  startReady,
  testDirectory,
  testWorker,
  type TestWorker,
  until,
  waits,
} from "../testing/worker.ts";
import { sha256 } from "./testing/forms.ts";

const MIB = 1024 * 1024;

/** This process's descriptors of jobs' files, without those of spare supervisors, and its inotify watches. */
function held({ stateDir }: TestWorker): { readonly files: number; readonly watches: number } {
  const descriptors = openDescriptors();
  const watches = descriptors
    .filter(({ target }) => target === "anon_inode:inotify")
    .map(({ fd }) => readFileSync(`/proc/self/fdinfo/${fd}`, "utf8").split("inotify wd:").length - 1);
  return {
    files: descriptors.filter(({ target }) => target.startsWith(`${stateDir}/jobs/`) && !target.includes(SPARE)).length,
    watches: watches.reduce((sum, count) => sum + count, 0),
  };
}

/** Resolves when nothing is held; libuv drops a watch that is closed in its own callback a moment later. */
async function released(worker: TestWorker): Promise<void> {
  await until("all descriptors and watches are released", () => held(worker).files + held(worker).watches === 0);
}

test("a reader that follows nothing has all of a job that ends meanwhile, if it tells of the end", async () => {
  await using worker = await testWorker();
  using files = testDirectory();
  const gate = join(files.path, "gate");
  const { id } = await startReady(worker, sh(`echo ready; until [ -e "$0" ]; do sleep 0.01; done; echo more`, gate));
  const stream = worker.stream(id, {});
  expect((await stream.next()).value).toMatchObject({ offset: 0 });
  open(gate);
  await worker.wait(id);
  const { text, job, offset } = await readAll(stream);
  expect([text, job.state, offset]).toEqual(["more\n", "ended", 11]);
});

describe("a follower", () => {
  test("that joins before, during or after the run gets the same 8 MiB and one end, 20 of them at once", async () => {
    await using worker = await testWorker();
    using files = testDirectory();
    const [bytes, first, second] = ["bytes", "first", "second"].map((name) => join(files.path, name)) as [
      string,
      string,
      string,
    ];
    const random = randomBytes(8 * MIB);
    writeFileSync(bytes, random);
    const wait = (gate: string) => `until [ -e "${gate}" ]; do sleep 0.01; done`;
    const script = `${wait(first)}; head -c ${4 * MIB} "$0"; ${wait(second)}; tail -c +${4 * MIB + 1} "$0"`;
    const { job: started } = await worker.start(sh(script, bytes));
    const join7 = (): Promise<{ readonly sum: string; readonly ended: boolean; readonly size: number }>[] =>
      Array.from({ length: 7 }, async () => {
        const hash = createHash("sha256");
        const stream = worker.stream(started.id, { follow: true });
        for (;;) {
          const { done, value } = await stream.next();
          if (done) return { sum: hash.digest("hex"), ended: value.job.state === "ended", size: value.offset };
          if (value.kind === "gap") throw new Error("no gap is here");
          hash.update(value.bytes);
        }
      });
    const before = join7();
    open(first);
    await until("half of it is there", () => worker.query(started.id).output.size === 4 * MIB);
    const during = join7();
    open(second);
    await worker.wait(started.id);
    const after = join7().slice(1);
    const reads = await Promise.all([...before, ...during, ...after]);
    expect(reads).toHaveLength(20);
    expect(new Set(reads.map((read) => JSON.stringify(read)))).toEqual(
      new Set([JSON.stringify({ sum: sha256(random), ended: true, size: 8 * MIB })]),
    );
    await released(worker);
  });

  test("is woken by what is written, line by line", async () => {
    await using worker = await testWorker();
    using files = testDirectory();
    const script = `for i in 0 1 2 3 4; do echo $i; until [ -e "$0$i" ]; do sleep 0.01; done; done`;
    const { job: started } = await worker.start(sh(script, join(files.path, "gate")));
    let next = 0;
    for await (const piece of worker.stream(started.id, { follow: true })) {
      if (piece.kind === "gap") throw new Error("no gap is here");
      expect(piece.bytes.toString()).toBe(`${next}\n`);
      open(join(files.path, `gate${next++}`));
    }
    expect(next).toBe(5);
  });

  test("is woken though the kernel has dropped what told of it, because others wrote so much", async () => {
    await using worker = await testWorker();
    using files = testDirectory();
    const gate = join(files.path, "gate");
    const quiet = await startReady(
      worker,
      sh('echo ready; until [ -e "$0" ]; do sleep 0.01; done; echo more; exec sleep 1000', gate),
    );
    const loud = [await startReady(worker, waits), await startReady(worker, waits)];
    const abort = new AbortController();
    const stream = worker.stream(quiet.id, { follow: true, signal: abort.signal });
    expect((await stream.next()).value).toMatchObject({ kind: "chunk", offset: 0 });
    const more = stream.next();
    const others = loud.map(({ id }) => readAll(worker.stream(id, { follow: true, signal: abort.signal })));
    await until("all three are followed", () => held(worker).watches === 3);
    // Nothing is taken from the queue while this goes on without a pause. An event like the last one takes no place.
    const outputs = loud.map(({ id }) => openSync(join(worker.directory(id), "output"), "r+"));
    const places = Number(readFileSync("/proc/sys/fs/inotify/max_queued_events", "utf8"));
    for (let i = 0; i <= places; i++) for (const output of outputs.slice(i % 2, (i % 2) + 1)) writeSync(output, "r", 0);
    for (const output of outputs) closeSync(output);
    open(gate);
    while (statSync(join(worker.directory(quiet.id), "output")).size < "ready\nmore\n".length);
    expect((await more).value).toMatchObject({ kind: "chunk", offset: 6 });
    abort.abort();
    await Promise.all([...others, stream.return(undefined as never)]);
  });

  test("that is abandoned frees its descriptors and its watch, at whatever point", async () => {
    await using worker = await testWorker();
    const { id } = await startReady(worker, waits);
    await released(worker);
    for (let i = 0; i < 10; i++) {
      await worker.stream(id, { follow: true }).return({ offset: 0, job: worker.query(id) });
      for await (const piece of worker.stream(id, { follow: true })) if (piece.kind === "chunk") break;
      const abort = new AbortController();
      const idle = readAll(worker.stream(id, { follow: true, signal: abort.signal }));
      await until("it follows", () => held(worker).watches === 1 && held(worker).files === 2);
      abort.abort();
      expect(await idle).toMatchObject({ text: "ready\n", offset: 6, job: { state: "running" } });
      expect(await readAll(worker.stream(id, { follow: true, signal: abort.signal }))).toMatchObject({ text: "" });
      const thrown = worker.stream(id, { follow: true });
      await thrown.next();
      await expect(thrown.throw(new Error("the consumer's"))).rejects.toThrow("the consumer's");
    }
    await released(worker);
  });

  test("is let go, with where to resume, when the worker closes", async () => {
    await using worker = await testWorker();
    const { id } = await startReady(worker, waits);
    const following = readAll(worker.stream(id, { follow: true }));
    await until("it follows", () => held(worker).watches === 1);
    await worker.close();
    expect(await following).toMatchObject({ text: "ready\n", offset: 6, job: { id, state: "running" } });
    await released(worker);
    await using next = await testWorker({ stateDir: worker.stateDir });
    expect(next.query(id).state).toBe("running");
  });

  test("of 1,000 costs, while idle, no CPU and no timer, and no watch of its own", async () => {
    await using worker = await testWorker();
    const { id } = await startReady(worker, waits);
    const timers = (): number =>
      process.getActiveResourcesInfo().filter((kind) => kind === "Timeout" || kind === "Immediate").length;
    const timersBefore = timers();
    const abort = new AbortController();
    const followers = Array.from({ length: 1000 }, () =>
      readAll(worker.stream(id, { follow: true, signal: abort.signal })),
    );
    await until("all follow", () => held(worker).files === 2000);
    // A job is the clock: this process has no timer of its own. The least of four counts, for vitest is here too.
    const [spentUs, timersThen]: [number[], number[]] = [[], []];
    for (let i = 0; i < 4; i++) {
      const { job: clock } = await worker.start(run("sleep", "0.3"));
      const ended = worker.wait(clock.id);
      const before = process.cpuUsage();
      timersThen.push(timers());
      await ended;
      const { user, system } = process.cpuUsage(before);
      spentUs.push(user + system);
    }
    expect(Math.min(...spentUs)).toBeLessThan(15_000);
    expect(Math.min(...timersThen)).toBeLessThanOrEqual(timersBefore);
    expect(held(worker).watches).toBe(1);
    abort.abort();
    expect((await Promise.all(followers)).every(({ text }) => text === "ready\n")).toBe(true);
    await released(worker);
  });
});
