import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { describe, expect, test } from "vitest";
import { recoverJournal } from "../journal/rebuild.ts";
import { readAll, refused, sh, testDaemon, testDirectory, testWorker } from "../testing/worker.ts";

/* A daemon that is killed at each step of a job's removal. */

const STEPS: readonly (readonly [string, string, boolean])[] = [
  ["before its record is removed", "before run DELETE.FROM.jobs", true],
  ["before that is on the disk", "after run INSERT.OR.REPLACE.INTO.removals", true],
  ["before its directory leaves its place", "before promises.rename removed", false],
  ["once its directory has left its place", "after promises.rename removed", false],
  ["before its files go", "before promises.rm removed-\\S+", false],
  ["when its files have gone", "before run DELETE.FROM.removals", false],
  ["before the last word of it is on the disk", "after run DELETE.FROM.removals", false],
];

const spec = { ...sh("echo said; exit 7"), labels: new Map([["build", "42"]]), requestId: "once" };

describe.each(["a daemon", "a recovery and a daemon"])("%s after one that was killed", (way) => {
  test.each(STEPS)("%s: the job is there, whole, or gone, without a trace", async (_when, death, there) => {
    using directory = testDirectory();
    const stateDir = join(directory.path, "state");
    await using daemon = await testDaemon({ stateDir }, death);
    const { id } = await daemon.start(spec);
    const answer = daemon.remove(id).catch(() => "no answer");
    await daemon.died;
    await answer;
    if (way.includes("recovery")) recoverJournal(stateDir);

    await using worker = await testWorker({ stateDir });
    if (there) {
      expect((await readAll(worker.stream(id, {}))).text).toBe("said\n");
      expect((await worker.wait(id)).ended?.exitCode).toBe(7);
      expect((await worker.start(spec)).alreadyStarted).toBe(true);
    } else {
      expect(await refused(() => worker.query(id))).toMatchObject({ code: "not-found" });
      expect((await worker.start(spec)).alreadyStarted).toBe(false);
    }
    expect(worker.list({ limit: 10, labels: spec.labels }).jobs).toHaveLength(1);
    await worker.close();
    expect(rows(stateDir, id)).toHaveLength(there ? 1 : 0);
    expect(existsSync(worker.directory(id))).toBe(there);
    expect(readdirSync(join(stateDir, "jobs", ".spares")).filter((name) => name.includes(id))).toEqual([]);
  });
});

/** What the journal of a closed worker has of a job. */
function rows(stateDir: string, id: string): unknown[] {
  using database = new DatabaseSync(join(stateDir, "journal.db"));
  return ["jobs", "removals"].flatMap((table) => database.prepare(`SELECT id FROM ${table} WHERE id = ?`).all(id));
}
