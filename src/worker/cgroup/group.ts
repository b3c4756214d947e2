import {
  closeSync,
  constants,
  openSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  watch,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { codeOf } from "../../os/errno.ts";
import type { Setting } from "../limits/setting.ts";
import { notWritten } from "../model/failure.ts";
import { isLeaderless } from "../system/process.ts";
import { withReserve } from "../system/reserve.ts";
import { processesIn } from "./hierarchy.ts";

/** A setting, of which only the supervisor's tests know no more than the file. */
type Written = Pick<Setting, "file" | "value"> & Partial<Setting>;

/** How often a group is looked at that cannot be watched, and one of which the kernel may have dropped the event. */
const UNWATCHED_MS = 100;
const WATCHED_MS = 1000;

/** Without O_CREAT: a file that is not there is told as such, and not as one that may not be made. */
function writeOnce(path: string, value: string): void {
  const fd = openSync(path, constants.O_WRONLY);
  try {
    writeSync(fd, value);
  } finally {
    closeSync(fd);
  }
}

/**
 * Writes a group's limits, one write(2) a value; if one fails, JobError `unsupported` names its file, value and errno.
 * Returns each file's content read back.
 */
export function limitGroup(path: string, settings: readonly Written[]): Map<string, string> {
  for (const { file, value, field, optional } of settings) {
    try {
      writeOnce(join(path, file), value);
    } catch (error) {
      if (optional && codeOf(error) === "ENOENT") continue;
      throw notWritten({ file, value, field }, error);
    }
  }
  return readLimits(
    path,
    settings.map(({ file }) => file),
  );
}

/** What the kernel has in `files`, as far as they are there. */
export function readLimits(path: string, files: Iterable<string>): Map<string, string> {
  const limits = new Map<string, string>();
  for (const file of files) {
    try {
      limits.set(file, readFileSync(join(path, file), "utf8").trim());
    } catch {
      // The group is gone, and the job with it.
    }
  }
  return limits;
}

/**
 * Kills every process of the group, forks in flight too. The kernel's own way does not reach a process whose first thread
 * has ended; what such a one forks before it is killed is met the second time.
 */
export function killGroup(path: string): void {
  for (let pass = 0; pass < 2; pass++) {
    try {
      withReserve(() => writeFileSync(join(path, "cgroup.kill"), "1"));
      for (const pid of processesIn(path)) if (isLeaderless(pid)) process.kill(pid, "SIGKILL");
    } catch {
      // The group is gone, or a process of it has ended.
    }
  }
}

export function populated(path: string): boolean {
  try {
    return withReserve(() => readFileSync(join(path, "cgroup.events"), "utf8")).includes("populated 1");
  } catch {
    return false;
  }
}

function removeTree(path: string): void {
  try {
    rmdirSync(path);
  } catch {
    for (const entry of readdirSync(path, { withFileTypes: true }))
      if (entry.isDirectory()) removeTree(join(path, entry.name));
    rmdirSync(path);
  }
}

/** Removes a group and what a job made below it, once nothing runs there; waits for that if need be. */
export async function removeGroup(path: string): Promise<void> {
  for (;;) {
    try {
      withReserve(() => removeTree(path));
      return;
    } catch (error) {
      const code = error instanceof Error && "code" in error ? error.code : undefined;
      if (code === "ENOENT") return;
      if (code !== "EBUSY") throw error;
    }
    await emptied(path);
  }
}

/** Resolves when nothing runs in the group: the kernel tells by cgroup.events. */
function emptied(path: string): Promise<void> {
  return new Promise((resolve) => {
    try {
      const watcher = watch(join(path, "cgroup.events"), check);
      const timer = setInterval(check, WATCHED_MS);
      function check(): void {
        if (populated(path)) return;
        watcher.close();
        clearInterval(timer);
        // EBUSY may outlast "populated 0" by the moment in which the last task is put away.
        setImmediate(resolve);
      }
      check();
    } catch {
      // No watch is to be had (inotify(7): EMFILE, ENOSPC), and the kernel has no other event.
      setTimeout(resolve, UNWATCHED_MS);
    }
  });
}
