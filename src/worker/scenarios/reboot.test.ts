import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { describe, expect, test } from "vitest";
import {
  changeRecords,
  finished,
  modes,
  readAll,
  rmGroup,
  runs,
  sh,
  startReady,
  supervisorOf,
  testWorker,
  until,
  waits,
} from "../testing/worker.ts";

describe.each(modes)("after a reboot %s", (_mode, options) => {
  test("jobs that ran are lost, ended ones are unchanged, and an exit record that was written in time counts", async () => {
    await using worker = await testWorker(options);
    const ended = await finished(worker, sh("echo x; exit 3"));
    const { id } = await startReady(worker, waits);
    const timed = await startReady(worker, { ...waits, timeLimitMs: 100 });
    await worker.close();
    await until("the second has its exit record", () => existsSync(join(worker.directory(timed.id), "exit")));
    // After a reboot nothing runs any more, no group exists, and the boot id differs.
    const supervisor = supervisorOf(worker.directory(id));
    process.kill(supervisor, "SIGKILL");
    await until("nothing of it runs", () => !runs(supervisor));
    {
      using database = new DatabaseSync(join(worker.stateDir, "journal.db"));
      database.exec("UPDATE meta SET value = 'the boot before' WHERE key = 'boot_id'");
    }
    const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
    changeRecords(worker.stateDir, "UPDATE jobs SET job = replace(job, ?, 'the-boot-before')", boot);
    await using again = await testWorker({ ...options, stateDir: worker.stateDir });
    expect((await again.wait(id)).ended).toEqual({
      how: { kind: "lost", reason: "the host was rebooted" },
      exitCode: -1,
      signal: 0,
      killed: 0,
    });
    expect((await again.wait(timed.id)).ended?.how).toEqual({ kind: "timed-out", limitMs: 100 });
    expect({ ...again.query(ended.id), text: ended.text }).toEqual(ended);
    expect((await readAll(again.stream(id, {}))).text).toBe("ready\n");
    expect(again.traces().filter((trace) => trace.startsWith("cgroup:"))).toEqual([]);
  });

  test("a job whose group is gone has the usage from its exit record", async () => {
    await using worker = await testWorker(options);
    const { id } = await startReady(worker, sh("echo ready; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"));
    await worker.close();
    await until("it has its exit record", () => existsSync(join(worker.directory(id), "exit")));
    const group = worker.cgroup === undefined ? undefined : join(worker.cgroup, id);
    if (group !== undefined) rmGroup(group);
    await using again = await testWorker({ ...options, stateDir: worker.stateDir });
    const { usage } = await again.wait(id);
    expect(usage).toMatchObject({ fromCgroup: false, memoryPeakBytes: expect.any(Number) });
    expect((usage?.cpuUserUs ?? 0) + (usage?.cpuSystemUs ?? 0)).toBeGreaterThan(5_000);
  });
});
