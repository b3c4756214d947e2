import { expect, vi } from "vitest";
import { seconds, type Usage } from "./api.ts";
import type { Daemon } from "./daemon.ts";

/** How fast a figure of a job's usage grows in a second, over some seconds of the worker's clock. */
export async function growth(daemon: Daemon, id: string, figure: (usage: Usage) => number, s = 20): Promise<number> {
  const before = (await daemon.query(id)).job.usage;
  const elapsed = async (): Promise<number> =>
    seconds((await daemon.query(id)).job.usage.elapsed) - seconds(before.elapsed);
  await vi.waitFor(async () => expect(await elapsed()).toBeGreaterThan(s), { timeout: 60_000, interval: 2_000 });
  const after = (await daemon.query(id)).job.usage;
  return (figure(after) - figure(before)) / (seconds(after.elapsed) - seconds(before.elapsed));
}

/** The share of one CPU that a job gets. */
export function cpuShare(daemon: Daemon, id: string): Promise<number> {
  return growth(daemon, id, ({ cpuUser, cpuSystem }) => seconds(cpuUser) + seconds(cpuSystem));
}

/** What lies under the container's files and its volumes, as it is known there. */
export async function diskOf(daemon: Daemon): Promise<{ readonly path: string; readonly number: string }> {
  const [, path = ""] = /^(\S+) \/var\/lib\/jobs /m.exec(await daemon.inside("cat", "/proc/mounts")) ?? [];
  const name = (await daemon.inside("lsblk", "--noheadings", "--output", "PKNAME,KNAME", "--nodeps", path)).trim();
  const number = await daemon.inside("cat", `/sys/class/block/${name.split(/\s+/)[0]}/dev`);
  return { path, number: number.trim() };
}
