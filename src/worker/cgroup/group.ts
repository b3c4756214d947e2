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

/** A setting to write; without controller and field in the supervisor's tests. */
type Written = Pick<Setting, "file" | "value"> & Partial<Setting>;

/** How often to look at a group that cannot be watched, and at a watched one, whose event the kernel may have dropped. */
const UNWATCHED_MS = 100;
const WATCHED_MS = 1000;

/** Writes without O_CREAT, so that a missing file fails with ENOENT and not with EACCES. */
function writeOnce(path: string, value: string): void {
  const fd = openSync(path, constants.O_WRONLY);
  try {
    writeSync(fd, value);
  } finally {
    closeSync(fd);
  }
}

/**
 * Writes a group's limits, one write(2) for each value. Returns each file's content read back. Throws JobError `unsupported`
 * with file, value and errno for a value that the kernel refuses.
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

/** The contents of those of `files` that exist. */
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
 * Kills every process of the group, also forks in flight. cgroup.kill does not reach a process whose first thread has ended;
 * the second pass reaches what such a process forks before it is killed.
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

/** Removes a group and the groups that a job made below it, once nothing runs there. Waits for that. */
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

/** Resolves when nothing runs in the group, of which cgroup.events tells. */
function emptied(path: string): Promise<void> {
  return new Promise((resolve) => {
    try {
      const watcher = watch(join(path, "cgroup.events"), check);
      const timer = setInterval(check, WATCHED_MS);
      function check(): void {
        if (populated(path)) return;
        watcher.close();
        clearInterval(timer);
        // EBUSY may last a moment longer than "populated 0", until the last task is freed.
        setImmediate(resolve);
      }
      check();
    } catch {
      // No watch is left (inotify(7): EMFILE, ENOSPC), and the kernel has no other event.
      setTimeout(resolve, UNWATCHED_MS);
    }
  });
}
