import { accessSync, constants } from "node:fs";
import { fileURLToPath } from "node:url";
import type { Place } from "./archive/store.ts";
import { JobError, invalid } from "./errors.ts";
import type { Part } from "./isolation.ts";
import type { Pauses } from "./line.ts";
import type { PruneLimits } from "./prune.ts";
import type { UidRange } from "./uids.ts";
import { checkRules } from "./users.ts";

export interface WorkerOptions {
  /** Holds the journal and the jobs' directories; made 0700 when it is not there. */
  readonly stateDir: string;
  /** In front of each job's id, so that ids tell which worker has the job. */
  readonly name?: string;
  /**
   * Jobs run as this user when a start names none: a name or a number. When absent, and the worker is root, each has a uid
   * of its own.
   */
  readonly user?: string;
  /** Where those are taken from; uids.ts has what is taken when absent. */
  readonly jobUids?: UidRange;
  /** Users that a start may name, beside `user`: names, numbers, or ranges as in "2000-2999". */
  readonly allowUsers?: readonly string[];
  /** Groups that a start may name, beside those of its user. */
  readonly allowGroups?: readonly string[];
  /** A start may name uid 0 and gid 0, and a user may have gid 0 among its groups. */
  readonly allowRoot?: boolean;
  /** Bytes of output kept of each job, with its index; 0 for no limit. 256 MiB when absent. */
  readonly logLimitBytes?: number;
  /** What to keep when a log reaches its limit. */
  readonly logKeep?: "newest" | "oldest";
  /** Of ended jobs' logs; off when absent. */
  readonly logCompress?: "off" | "zstd";
  /** When ended jobs' logs are removed; never when absent. */
  readonly logPrune?: PruneLimits;
  /** Between tries while compressing fails, as on a full disk: as for the archive when absent. */
  readonly compressPauses?: Pauses;
  /** Where logs of ended jobs are moved to; they stay when absent. */
  readonly archive?: Place;
  /** Between tries while the archive fails: 1 s at first, 5 min at most when absent. */
  readonly archivePauses?: Pauses;
  /** Jobs at once; a start beyond it is refused as exhausted. */
  readonly maxJobs?: number;
  /** The cgroup v2 directory to make jobs' groups in, instead of one below the worker's own place. */
  readonly cgroup?: string;
  /** What jobs are not kept from the host by. A pid namespace, and a cgroup namespace, go with the mount namespace. */
  readonly isolationOff?: readonly Part[];
  /** A start may ask that its job can make user namespaces. */
  readonly allowUserNamespaces?: boolean;
  /** Paths, beside the state directory, that jobs of the worker's own user cannot read. */
  readonly hidden?: readonly string[];
  /** Paths that jobs of the worker's own user cannot change. */
  readonly sealed?: readonly string[];
  /** The native supervisor's binary. */
  readonly supervisor?: string;
  readonly log?: (level: "debug" | "info" | "warn" | "error", message: string, facts?: object) => void;
}

/** With the defaults for what was left out. */
export type CheckedOptions = WorkerOptions &
  Required<Pick<WorkerOptions, "log" | "logCompress" | "logKeep" | "logLimitBytes" | "maxJobs" | "supervisor">>;

export const LOG_LIMIT_BYTES = 256 * 1024 * 1024;
export const LEAST_LOG_LIMIT_BYTES = 1024 * 1024;
const MAX_JOBS = 10_000;
/** Why none of these has user namespaces of its own. */
export const OWN_USER = "jobs of the worker's own user could mount their cgroup anew in one, and lift their limits";

/** Throws `invalid` with the option's name. */
export function checkOptions(options: WorkerOptions): CheckedOptions {
  const {
    name,
    log = () => {},
    logCompress = "off",
    logKeep = "newest",
    logLimitBytes = LOG_LIMIT_BYTES,
    maxJobs = MAX_JOBS,
    supervisor = fileURLToPath(new URL("../../build/supervisor", import.meta.url)),
  } = options;
  if (name !== undefined && !/^[a-z0-9][a-z0-9-]{0,31}$/.test(name))
    throw invalid("name", "up to 32 of a-z 0-9 - are a worker's name");
  if (logLimitBytes !== 0 && !(logLimitBytes >= LEAST_LOG_LIMIT_BYTES))
    throw invalid("log limit", `${logLimitBytes} bytes is too small; ${LEAST_LOG_LIMIT_BYTES} is the least, 0 is none`);
  if (options.allowUserNamespaces && process.getuid?.() !== 0)
    throw invalid("allow-user-namespaces", `needs a worker that is root: ${OWN_USER}`);
  checkRules(options);
  return { ...options, log, logCompress, logKeep, logLimitBytes, maxJobs, supervisor };
}

/** Throws JobError `unavailable` when there is no such program. */
export function checkSupervisor(path: string): void {
  try {
    accessSync(path, constants.X_OK);
  } catch (error) {
    throw new JobError("unavailable", `the supervisor cannot be run: ${path}; make -C src/supervisor builds it`, {
      cause: error,
    });
  }
}
