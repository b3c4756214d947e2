import { existsSync, readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { needsRoot } from "../testing/root.ts";
import { hardened, inFlight, rig, supervisorsOf, type Rig } from "./testing/rig.ts";
import { childrenOf, runs, statOf, until } from "../testing/processes.ts";

/** What the spawner holds: children that have ended but were not reaped, descriptors, resident kB. */
function holdings(pid: number) {
  const children = childrenOf(pid);
  const zombies = children.concat(children.flatMap(childrenOf)).filter((child) => statOf(child)?.[0] === "Z");
  const resident = /^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
  return { zombies: zombies.length, descriptors: readdirSync(`/proc/${pid}/fd`).length, residentKb: Number(resident) };
}

describe.each(hardened)("$mode", (variant) => {
  async function runMany(it: Rig, count: number): Promise<void> {
    await inFlight(count, async () => {
      const { job, exit } = await it.run({ argv: ["/bin/true"] });
      it.spawner.refill(); // as the worker does when a job has ended
      if (exit["code"] !== 0 || existsSync(join(job.directory, "exit.new"))) throw new Error(JSON.stringify(exit));
    });
    await until(() => supervisorsOf(it).length === 0, "all supervisors are reaped");
  }

  const count = variant.mode === "descent" ? 10_000 : 1_000;
  test(
    `neither zombies, descriptors nor memory add up over ${count} jobs`,
    { timeout: 300_000, ...needsRoot },
    async () => {
      await using it = await rig(variant);
      await runMany(it, 200);
      const before = holdings(it.pid());
      expect(before.zombies).toBe(0);
      for (let done = 0; done < count; done += count / 10) {
        await runMany(it, count / 10);
        // The last job's is closed just after its end is told.
        await until(() => holdings(it.pid()).descriptors === before.descriptors, "all descriptors are closed");
        const now = holdings(it.pid());
        expect(now.zombies).toBe(0);
        expect(now.residentKb).toBeLessThan(before.residentKb + 128);
      }
    },
  );

  test("a waiting supervisor uses no processor time", async () => {
    await using it = await rig(variant);
    const job = await it.start({ script: 'echo ready; (setsid sleep 1000 &); read x < "$CUE"' });
    await job.wrote("ready");
    const ticks = (): number => Number(statOf(job.supervisor)?.[11]) + Number(statOf(job.supervisor)?.[12]);
    const others = await it.start({ argv: ["sleep", "0.3"] });
    const before = ticks();
    await others.ended();
    expect(ticks() - before).toBeLessThanOrEqual(2);
    expect(runs(job.supervisor)).toBe(true);
    it.cue();
    await job.ended();
  });
});
