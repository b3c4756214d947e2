import { existsSync, mkdirSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { noMounts, smallDisk } from "../../testing/disks.ts";
import { marked } from "../../testing/processes.ts";
import { unless } from "../../testing/root.ts";
import { sh, testDaemon, testDirectory, testWorker, until } from "../testing/worker.ts";

/* A daemon that is killed on a full disk, and finds some of its files damaged when it comes back. */

const MIB = 2 ** 20;
const WAITS = "seq 3000; (setsid sleep 1000 &); exec sleep 1000";

test.each<[string, (stateDir: string, ended: string, running: string) => void]>([
  ["nothing", () => {}],
  ["a cut exit record", (stateDir, ended) => truncateSync(join(stateDir, "jobs", ended, "exit"), 20)],
  ["a cut index of a running job", (stateDir, _ended, id) => truncateSync(join(stateDir, "jobs", id, "index"), 70)],
  ["no control of a running job", (stateDir, _ended, id) => rmSync(join(stateDir, "jobs", id, "control"))],
  [
    "a file in the place of a running job's directory",
    (stateDir, _ended, id) => {
      rmSync(join(stateDir, "jobs", id), { recursive: true });
      writeFileSync(join(stateDir, "jobs", id), "");
    },
  ],
  [
    "all of these",
    (stateDir, ended, id) => {
      truncateSync(join(stateDir, "jobs", ended, "exit"), 0);
      truncateSync(join(stateDir, "jobs", ended, "index"), 0);
      rmSync(join(stateDir, "jobs", id), { recursive: true });
    },
  ],
])(
  "a daemon that was killed on a full disk, and finds %s, tells of all jobs and ends them whole",
  unless(noMounts),
  async (_what, damage) => {
    using files = testDirectory();
    using disk = smallDisk(join(files.path, "disk"), 16 * MIB);
    const stateDir = join(disk.path, "state");
    mkdirSync(stateDir);
    const mark = crypto.randomUUID();
    const env = new Map([["MARK", mark]]);
    const daemon = await testDaemon({ stateDir });
    const running = await daemon.start({ ...sh(WAITS), env });
    const other = await daemon.start({ ...sh(WAITS), env });
    const gate = join(files.path, "gate");
    const ends = await daemon.start({ ...sh('until [ -e "$0" ]; do sleep 0.01; done; exit 3', gate), env });
    await until("each has its processes", () => marked(mark).length >= 5);
    disk.fill();
    writeFileSync(gate, "");
    await daemon.kill();
    disk.empty();
    await until("the third's end is on the disk", () => existsSync(join(stateDir, "jobs", ends.id, "exit")));
    disk.fill();
    damage(stateDir, ends.id, running.id);
    await using worker = await testWorker({ stateDir });
    const ids = worker.list({ limit: 10 }).jobs.map(({ id }) => id);
    expect(ids.toSorted()).toEqual([running.id, other.id, ends.id].toSorted());
    disk.empty();
    for (const id of ids)
      expect((await worker.stop(id, { by: "tester", graceMs: 0 })).job).toMatchObject({ id, state: "ended" });
    await until("nothing of them runs", () => marked(mark).length === 0);
    // The state directory is on a disk that goes first.
    await worker.close();
  },
);
