import { spawnSync } from "node:child_process";
import {
  copyFileSync,
  existsSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import type { Recovered } from "../../src/worker/journal/rebuild.ts";
import { type Host, JOBSD, launch, type Ran, startHost } from "../testing/host.ts";

const DEATH = fileURLToPath(new URL("../../src/worker/testing/death.ts", import.meta.url));

function recover(host: Host, ...flags: readonly string[]): Promise<Ran> {
  return launch("jobsd", ["--recover", "--state", join(host.dir, "state"), ...flags]).ended;
}

/** Jobs that have ended in two ways, and one that runs. */
async function threeJobs(host: Host): Promise<{ failed: string; stopped: string; runs: string; pid: number }> {
  const { stdout } = await host.jobs([
    "start",
    "--request-id",
    "r1",
    "-l",
    "a=b",
    "--",
    "sh",
    "-c",
    "echo one; exit 3",
  ]);
  const failed = stdout.trim();
  await host.jobs(["wait", failed]);
  const stopped = await host.start("sleep", "1000");
  await host.jobs(["stop", stopped]);
  const runs = await host.start("sh", "-c", "echo still here; exec sleep 1000");
  await new Promise((resolve) => setTimeout(resolve, 300)); // its record is written when nobody waits
  return { failed, stopped, runs, pid: JSON.parse((await host.jobs(["query", "-o", "json", runs])).stdout).pid };
}

const damages: readonly (readonly [string, (journal: string) => void])[] = [
  ["is removed", (journal) => rmSync(journal)],
  ["is overwritten", (journal) => writeFileSync(journal, "x".repeat(50_000))],
  ["is cut", (journal) => truncateSync(journal, Math.floor(statSync(journal).size / 3))],
];

test.each(damages)(
  "a journal that %s is made anew: jobs run on, results and output are there",
  async (_what, damage) => {
    await using host = await startHost();
    const state = join(host.dir, "state");
    const journal = join(state, "journal.db");
    const certificates = [
      "--ca",
      host.file("ca.crt"),
      "--cert",
      host.file("worker.crt"),
      "--key",
      host.file("worker.key"),
    ];
    const flags = ["--listen", "127.0.0.1:0", "--state", state, ...certificates];
    const { failed, stopped, runs, pid } = await threeJobs(host);
    expect(await recover(host)).toMatchObject({ code: 1, stderr: expect.stringContaining("another jobsd uses") });
    await host.crash(async () => {
      damage(journal);
      rmSync(`${journal}-wal`, { force: true });
      const refused = await launch("jobsd", flags).ended;
      expect(refused).toMatchObject({ code: 1, stderr: expect.stringMatching(/^jobsd: .*jobsd --recover.*\n$/) });
      const { code, stdout } = await recover(host, "--json");
      expect(code).toBe(0);
      const told: Recovered = JSON.parse(stdout);
      expect(told).toMatchObject({ jobs: 3, ended: 2, running: 1, lost: 0, nameless: [], unstarted: [] });
      expect(told.aside === undefined || existsSync(told.aside)).toBe(true);
      // Once more changes nothing but that there is another one to keep.
      const again: Recovered = JSON.parse((await recover(host, "--json")).stdout);
      expect(again).toMatchObject({ jobs: 3, ended: 2, running: 1, instance: told.instance });
    });
    const query = async (id: string): Promise<unknown> =>
      JSON.parse((await host.jobs(["query", "-o", "json", id])).stdout);
    expect(await query(failed)).toMatchObject({ job: { labels: { a: "b" }, ended: { exitCode: 3 } } });
    expect((await host.jobs(["query", stopped])).stdout).toContain("writer");
    expect(await query(runs)).toMatchObject({ job: { state: "STATE_RUNNING" }, pid });
    expect((await host.jobs(["stream", failed])).stdout).toBe("one\n");
    expect((await host.jobs(["stream", runs])).stdout).toBe("still here\n");
    const { stdout } = await host.jobs(["list", "-q"]);
    expect(stdout.trim().split("\n")).toEqual([runs, stopped, failed]);
    const second = await host.jobs(["start", "--request-id", "r1", "--", "sh", "-c", "echo one; exit 3"]);
    expect(second.stdout.trim()).toBe(failed);
    expect((await host.jobs(["stop", runs])).code).toBe(0);
  },
);

test.each([
  ["before anything is moved", "before linkSync damaged"],
  ["once the old journal has a second name", "after linkSync damaged"],
  ["once its -wal is put aside", "after renameSync damaged-\\S*-wal"],
  ["before the new one takes its place", "before renameSync recover/journal.db"],
  ["once the new one is in its place", "after renameSync recover/journal.db"],
])("a recovery that is killed %s leaves the old journal or the new one, and can be run again", async (_when, death) => {
  await using host = await startHost();
  const state = join(host.dir, "state");
  const { runs, pid } = await threeJobs(host);
  await host.crash(async () => {
    const journal = join(state, "journal.db");
    const before = readFileSync(journal);
    const cut = spawnSync(process.execPath, ["--import", DEATH, JOBSD, "--recover", "--state", state], {
      env: { ...process.env, DEATH: death },
    });
    expect(cut.signal).toBe("SIGKILL");
    expect(readFileSync(journal).equals(before)).toBe(!death.startsWith("after renameSync recover"));
    const told: Recovered = JSON.parse((await recover(host, "--json")).stdout);
    expect(told).toMatchObject({ jobs: 3, ended: 2, running: 1, lost: 0, nameless: [] });
    expect(readdirSync(state).filter((name) => name.startsWith(".recover"))).toEqual([]);
    copyFileSync(told.aside ?? "", join(host.dir, "aside")); // it is there
  });
  expect(JSON.parse((await host.jobs(["query", "-o", "json", runs])).stdout)).toMatchObject({ pid });
});
