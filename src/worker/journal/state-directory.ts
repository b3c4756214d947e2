import { chmodSync, lstatSync, rmSync } from "node:fs";
import { join } from "node:path";
import { makeDirectory } from "../../os/directory.ts";
import { reasonOf } from "../../os/errno.ts";
import { JobError } from "../model/errors.ts";
import { withReserve } from "../system/reserve.ts";
import { exposureOf } from "../system/exposure.ts";

/** The directories in a state directory. */
export interface Directories {
  /** Holds a directory for each job. */
  readonly jobsDir: string;
  /** Holds directories made ahead, on the same file system; apart, so that they are found without reading all jobs. */
  readonly sparesDir: string;
}

/**
 * Makes the state directory what it is to be. Throws JobError `unavailable`, with `reason: "exposed"`, the path and its
 * owner where users other than the daemon's could change what is in it, or put another directory in its place.
 */
export function openDirectory(stateDir: string): Directories {
  const jobsDir = join(stateDir, "jobs");
  const sparesDir = join(jobsDir, ".spares");
  try {
    makeDirectory(stateDir);
    checkOwn(stateDir);
    chmodSync(stateDir, 0o700);
    makeDirectory(sparesDir);
  } catch (error) {
    if (error instanceof JobError) throw error;
    throw new JobError("unavailable", `the state directory cannot be used: ${reasonOf(error)}`, { cause: error });
  }
  return { jobsDir, sparesDir };
}

/** Throws JobError `unavailable` where other users could change what a state directory holds. */
export function checkOwn(stateDir: string): void {
  const exposure = exposureOf(stateDir);
  if (exposure === undefined) return;
  const { path, owner, reason, remedy } = exposure;
  const facts = { reason: "exposed", path, owner };
  throw new JobError("unavailable", `the state directory cannot be used: ${reason}; ${remedy}`, { facts });
}

/** After so many tries nobody else can still be removing the same directory. */
const TRIES = 1000;

/**
 * Removes a directory that another may be removing too: where it finds a file gone, Node's own leaves the rest and is
 * content. Throws what keeps it from being removed.
 */
export function removeDirectory(path: string): void {
  for (let left = TRIES; lstatSync(path, { throwIfNoEntry: false }); left--) {
    if (left === 0) throw new Error(`${path} is there again and again`);
    withReserve(() => rmSync(path, { recursive: true, force: true }));
  }
}
