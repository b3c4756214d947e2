import { limit, type Setting } from "./setting.ts";

const PIDS_MAX = 4_194_304n; // PID_MAX_LIMIT, include/linux/threads.h

/** Returns the line of pids.max. Throws JobError `invalid`. */
export function pidsSettings(asked: bigint | undefined): Setting[] {
  if (asked === undefined) return [];
  // pids.max must be 1 for the job itself, so 0 means that the job may not fork, as in opencontainers/cgroups.
  const value = asked === 0n ? "1" : limit("resources.pids.limit", asked, PIDS_MAX);
  return [{ file: "pids.max", value, controller: "pids", field: "resources.pids.limit" }];
}
