import { constants, existsSync } from "node:fs";
import { open } from "node:fs/promises";
import { dirname, join } from "node:path";
import { codeOf } from "../../os/errno.ts";
import { contentOf } from "../../os/proc.ts";
import { readLimits } from "../cgroup/group.ts";
import { isOwnerGroup } from "../cgroup/owner-groups.ts";
import { type Change, changesOf } from "../limits/change.ts";
import { deviceProgram } from "../limits/devices.ts";
import { thisHost } from "../limits/host.ts";
import { affected, merged } from "../limits/merge.ts";
import type { Host, Setting } from "../limits/setting.ts";
import { settingsOf } from "../limits/settings.ts";
import { unifiedSettings } from "../limits/unified.ts";
import { invalid, JobError, notFound } from "../model/errors.ts";
import { notWritten } from "../model/failure.ts";
import type { Job } from "../model/job.ts";
import { checkResources, type LinuxMemory, type LinuxResources } from "../model/resources.ts";
import { type Context, find, isTracked } from "./context.ts";
import { checkDevices, checkSettings } from "./enforceable.ts";
import { checkMost, quotaHere } from "./quota.ts";
import { type TrackedJob, usageOf } from "./tracked-job.ts";

/**
 * Changes limits of a job that has not ended: all that `resources` names, or none. Updates of a job are made one at a time.
 * Throws JobError: `invalid`, `unsupported`, `not-found`, and `precondition` when the job has ended.
 */
export async function update(context: Context, id: string, resources: LinuxResources): Promise<Job> {
  if (context.closed) throw new JobError("unavailable", "the worker is closing");
  checkResources("resources", resources);
  const entry = find(context, id);
  if (!isTracked(entry)) throw ended(id);
  const turn = entry.updates.then(() => change(context, entry, resources));
  entry.updates = turn.catch(() => {});
  return turn;
}

async function change(context: Context, entry: TrackedJob, asked: LinuxResources): Promise<Job> {
  const { hierarchy, journal, options, spawner } = context;
  const { id, resources: old = {} } = entry.job;
  await entry.launched.promise.catch(() => {
    throw notFound(id);
  });
  const host = thisHost(hierarchy.kind === "none" ? undefined : hierarchy.path);
  const resources = merged(old, asked, host);
  const settings = settingsToWrite(old, asked, resources, host);
  const devices = deviceProgram(asked.devices ?? [], host);
  const quota = quotaHere(context, entry.job.owner);
  const { group } = entry;
  if (quota) checkMost(settings, entry.job.owner, quota, group !== undefined && isOwnerGroup(dirname(group)));
  checkSettings(settings, hierarchy);
  if (devices) checkDevices(hierarchy);
  if (hasEnded(entry)) throw ended(id);
  let { limits } = entry.job;
  if (group !== undefined) {
    if (resources.memory?.checkBeforeUpdate) checkUse(affected(resources, asked).memory ?? {}, entry);
    const changes = changesOf(settings, (file) => contentOf(join(group, file)));
    // Last, because a change of device rules cannot be undone.
    const changeDevices = async (): Promise<void> => devices && spawner.devices(group, devices);
    await apply(changes, changeDevices, group, options.log).catch((error: unknown) => {
      throw existsSync(group) ? error : ended(id);
    });
    limits = readLimits(group, new Set([...limits.keys(), ...changes.map(({ file }) => file)]));
  }
  // The job's end has been told with the limits from before.
  if (hasEnded(entry)) throw ended(id);
  entry.job = { ...entry.job, resources, limits };
  journal.update(entry.job);
  context.files.later(entry);
  options.log("info", "job updated", { job: id, files: settings.map(({ file }) => file) });
  return entry.job;
}

/**
 * The settings that an update writes, by the rules of a start. What the start asked for by a file's name still overrides
 * what the update asks for by a field.
 */
function settingsToWrite(old: LinuxResources, asked: LinuxResources, all: LinuxResources, host: Host): Setting[] {
  if (Object.values(asked).every((group) => Object.keys(group ?? {}).length === 0))
    throw invalid("resources", "names nothing to change");
  const settings = settingsOf(affected(all, asked), host);
  const overrides = Object.entries(old.unified ?? {}).filter(
    ([file]) => !Object.hasOwn(asked.unified ?? {}, file) && settings.some((setting) => setting.file === file),
  );
  return [...settings, ...unifiedSettings(Object.fromEntries(overrides))];
}

/**
 * Refuses a limit below what the job uses, as memory.checkBeforeUpdate asks (opencontainers/cgroups, CheckMemoryUsage).
 * Throws JobError `precondition`.
 */
function checkUse({ limit = -1n, swap = -1n }: LinuxMemory, entry: TrackedJob): void {
  const { memoryCurrentBytes = 0, memorySwapBytes = 0 } = usageOf(entry);
  for (const [name, most, used] of [
    ["limit", limit, memoryCurrentBytes],
    ["swap", swap, memoryCurrentBytes + memorySwapBytes],
  ] as const) {
    const field = `resources.memory.${name}`;
    if (most === -1n || most >= used) continue;
    throw new JobError("precondition", `${field}: ${most} is below the ${used} bytes that the job uses`, { field });
  }
}

function hasEnded({ job }: TrackedJob): boolean {
  return job.state === "ended";
}

function ended(id: string): JobError {
  return new JobError("precondition", `job ${id} has ended, and has no limits to change`, { field: "job_id" });
}

/**
 * Writes the changes, and then calls `last`. If that throws, or the kernel refuses a change, undoes what was written and
 * throws: of a refused change, JobError `unsupported` with field, file, value and errno.
 */
async function apply(
  changes: readonly Change[],
  last: () => Promise<void>,
  group: string,
  log: Context["options"]["log"],
): Promise<void> {
  const done: Change[] = [];
  try {
    for (const change of changes) if (await applied(change, group)) done.push(change);
    await last();
  } catch (error) {
    for (const { file, value } of done.toReversed().flatMap(({ undo }) => undo))
      await write(join(group, file), value).catch((failure: unknown) =>
        log("error", "a limit could not be put back", { group, file, value, error: failure }),
      );
    throw error;
  }
}

/** Writes a change. Resolves to false for an optional file that does not exist. */
async function applied(change: Change, group: string): Promise<boolean> {
  try {
    await write(join(group, change.file), change.value);
    return true;
  } catch (error) {
    if (change.optional && codeOf(error) === "ENOENT") return false;
    throw notWritten(change, error);
  }
}

/** Writes on another thread: a lower memory.max blocks until the kernel has reclaimed what is above it. */
async function write(path: string, value: string): Promise<void> {
  await using file = await open(path, constants.O_WRONLY);
  await file.write(value);
}
