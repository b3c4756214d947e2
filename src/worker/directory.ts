import { chmodSync, existsSync, mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { JobError } from "./errors.ts";

/** Makes the state directory what it is to be. Returns the directory of the jobs' own. Throws JobError `unavailable`. */
export function openDirectory(stateDir: string): string {
  const jobsDir = join(stateDir, "jobs");
  try {
    makeDirectory(jobsDir);
    chmodSync(stateDir, 0o700);
  } catch (error) {
    throw new JobError(
      "unavailable",
      `the state directory cannot be used: ${error instanceof Error ? error.message : String(error)}`,
      { cause: error },
    );
  }
  return jobsDir;
}

/** Makes a directory and those above it. Node's own `recursive` never returns where the file system refuses with ENOENT, as /proc does. */
function makeDirectory(path: string): void {
  if (existsSync(path)) return;
  makeDirectory(dirname(path));
  mkdirSync(path, { mode: 0o700 });
}
