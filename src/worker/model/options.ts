import { join } from "node:path";
import { nativeDirectory } from "../../os/native.ts";
import type { Pauses } from "../../os/pause.ts";
import { invalid } from "./errors.ts";
import { type Part, SWITCHES } from "./isolation.ts";
import { checkQuotas, checkQuotaTypes, type Quotas } from "./quota.ts";
import type { WorkerMeter } from "./meter.ts";
import { amount, callback, kinds, listOf, oneOf, shape, text, truth, whole } from "./shape.ts";

export interface WorkerOptions {
  /** Holds the journal and the jobs' directories; made with mode 0700 when it does not exist. */
  readonly stateDir: string;
  /** Put in front of each job's id, so that ids tell which worker has the job. */
  readonly name?: string;
  /**
   * The user of jobs whose starts name none: a name or a number. When absent, and the worker is root, each job has a uid of
   * its own.
   */
  readonly user?: string;
  /** The range of those uids; uids.ts has the default. */
  readonly jobUids?: UidRange;
  /** Users that a start may name, beside `user`: names, numbers, or ranges such as "2000-2999". */
  readonly allowUsers?: readonly string[];
  /** Groups that a start may name, beside those of its user. */
  readonly allowGroups?: readonly string[];
  /** A start may name uid 0 and gid 0, and a user may have gid 0 among its groups. */
  readonly allowRoot?: boolean;
  /** The most bytes of output that are kept of a job, with the index; 0 for no limit. 256 MiB when absent. */
  readonly logLimitBytes?: number;
  /** Which bytes to keep when a log reaches its limit; the newest when absent. */
  readonly logKeep?: "newest" | "oldest";
  /** How logs of ended jobs are compressed; off when absent. */
  readonly logCompress?: "off" | "zstd";
  /** When logs of ended jobs are removed; never when absent. */
  readonly logPrune?: PruneLimits;
  /** When jobs that have ended are removed, with all that there is of them; never when absent. */
  readonly jobPrune?: JobPruneLimits;
  /** Pauses between tries while compressing fails, as on a full disk; as `archivePauses` when absent. */
  readonly compressPauses?: Pauses;
  /** The archive that logs of ended jobs are moved to; none when absent. */
  readonly archive?: Place;
  /** Pauses between tries while the archive fails; from 1 s to 5 min when absent. */
  readonly archivePauses?: Pauses;
  /** The most jobs at once; a start beyond them is refused as `exhausted`. */
  readonly maxJobs?: number;
  /** What the jobs of each owner may have; no limits when absent. */
  readonly quotas?: Quotas;
  /** The cgroup v2 directory to make jobs' groups in, instead of the worker's own group. */
  readonly cgroup?: string;
  /** Parts of the isolation that jobs do without. Without a mount namespace there is no pid or cgroup namespace either. */
  readonly isolationOff?: readonly Part[];
  /** A start may ask to let its job make user namespaces. */
  readonly allowUserNamespaces?: boolean;
  /** Paths, beside the state directory, that jobs of the worker's own user cannot read. */
  readonly hidden?: readonly string[];
  /** Paths that jobs of the worker's own user cannot change. */
  readonly sealed?: readonly string[];
  /** The native supervisor's binary. */
  readonly supervisor?: string;
  /** Hears of starts and ends. */
  readonly meter?: WorkerMeter | undefined;
  readonly log?: (level: "debug" | "info" | "warn" | "error", message: string, facts?: object) => void;
}

/** The options that may change while jobs run. */
export const RENEWABLE = [
  "allowUsers",
  "allowGroups",
  "allowRoot",
  "allowUserNamespaces",
  "logLimitBytes",
  "logKeep",
  "logCompress",
  "logPrune",
  "jobPrune",
  "maxJobs",
  "quotas",
] as const satisfies readonly (keyof WorkerOptions)[];
export type Renewable = Pick<WorkerOptions, (typeof RENEWABLE)[number]>;

/** Options with the defaults filled in. */
export type CheckedOptions = WorkerOptions &
  Required<Pick<WorkerOptions, "log" | "logCompress" | "logKeep" | "logLimitBytes" | "maxJobs" | "supervisor">>;

export const LOG_LIMIT_BYTES = 256 * 1024 * 1024;
export const LEAST_LOG_LIMIT_BYTES = 1024 * 1024;
const MAX_JOBS = 10_000;
/** Why a job of the worker's own user may not make user namespaces. */
export const OWN_USER = "jobs of the worker's own user could mount their cgroup anew in one, and lift their limits";

/** The supervisor's binary where none is named. */
export function nativeSupervisor(): string {
  return join(nativeDirectory(), "supervisor");
}

const pauses = shape<Pauses>({ firstMs: whole, lastMs: whole }, ["firstMs", "lastMs"]);
const place = kinds({
  directory: shape<Extract<Place, { kind: "directory" }>>({ kind: text, path: text }, ["path"]),
  s3: shape<Extract<Place, { kind: "s3" }>>(
    { kind: text, bucket: text, prefix: text, endpoint: text, region: text, silenceMs: whole },
    ["bucket", "prefix"],
  ),
});

/** Throws `invalid` where a field of a policy for records has another type. */
export const checkJobPrune = shape<JobPruneLimits>({ ageMs: amount, count: whole, archived: truth });

const checkTypes = shape<WorkerOptions>(
  {
    stateDir: text,
    name: text,
    user: text,
    jobUids: shape<UidRange>({ first: whole, last: whole }, ["first", "last"]),
    allowUsers: listOf(text),
    allowGroups: listOf(text),
    allowRoot: truth,
    logLimitBytes: amount,
    logKeep: oneOf("newest", "oldest"),
    logCompress: oneOf("off", "zstd"),
    logPrune: shape<PruneLimits>({
      ageMs: amount,
      count: whole,
      bytes: amount,
      free: shape<NonNullable<PruneLimits["free"]>>({ kind: oneOf("bytes", "percent"), amount }, ["kind", "amount"]),
      freeEveryMs: whole,
    }),
    jobPrune: checkJobPrune,
    compressPauses: pauses,
    archive: place,
    archivePauses: pauses,
    maxJobs: whole,
    quotas: checkQuotaTypes,
    cgroup: text,
    isolationOff: listOf(oneOf(...SWITCHES)),
    allowUserNamespaces: truth,
    hidden: listOf(text),
    sealed: listOf(text),
    supervisor: text,
    meter: shape<WorkerMeter>({ started: callback, repeated: callback, refused: callback, ended: callback }),
    log: callback,
  },
  ["stateDir"],
);

/** Fills in defaults. Throws `invalid`, naming the option. */
export function checkOptions(options: WorkerOptions): CheckedOptions {
  checkTypes("", options);
  const {
    name,
    log = () => {},
    logCompress = "off",
    logKeep = "newest",
    logLimitBytes = LOG_LIMIT_BYTES,
    maxJobs = MAX_JOBS,
    supervisor = nativeSupervisor(),
  } = options;
  if (name !== undefined && !/^[a-z0-9][a-z0-9-]{0,31}$/.test(name))
    throw invalid("name", "is not a worker's name; give up to 32 of a-z 0-9 -");
  if (logLimitBytes !== 0 && !(logLimitBytes >= LEAST_LOG_LIMIT_BYTES))
    throw invalid(
      "log limit",
      `${logLimitBytes} bytes is too small; ${LEAST_LOG_LIMIT_BYTES} is the least, and 0 means no limit`,
    );
  if (options.allowUserNamespaces && process.getuid?.() !== 0)
    throw invalid("allow-user-namespaces", `needs a worker that is root: ${OWN_USER}`);
  if (options.quotas) checkQuotas(options.quotas);
  return { ...options, log, logCompress, logKeep, logLimitBytes, maxJobs, supervisor };
}

/** The place of an archive. */
export type Place =
  /** A directory that exists. It is not made, because its file system may not be mounted. */
  | { readonly kind: "directory"; readonly path: string }
  | {
      readonly kind: "s3";
      readonly bucket: string;
      /** The beginning of each key, without a slash at its end; may be empty. */
      readonly prefix: string;
      /** A server other than AWS, such as `http://127.0.0.1:9000`. The bucket is then the first part of the path. */
      readonly endpoint?: string;
      /** Found by the SDK when absent; us-east-1 with an endpoint. */
      readonly region?: string;
      /** How long a connection may be silent before it is given up; 30 s when absent. */
      readonly silenceMs?: number;
    };

/** Limits at which logs of ended jobs are removed, those of the jobs that ended first before the others. */
export interface PruneLimits {
  /** Time since the job's end. */
  readonly ageMs?: number;
  readonly count?: number;
  readonly bytes?: number;
  /** The part of the disk that must stay free. */
  readonly free?: { readonly kind: "bytes" | "percent"; readonly amount: number };
  /** How often the free space is checked; 30 s when absent. */
  readonly freeEveryMs?: number;
}

/** Limits at which jobs that have ended are removed, those that ended first before the others. */
export interface JobPruneLimits {
  /** Time since the job's end. */
  readonly ageMs?: number;
  readonly count?: number;
  /** Copies of their logs in the archive go, too. */
  readonly archived?: boolean;
}

/** A range of uids, with both ends. */
export interface UidRange {
  readonly first: number;
  readonly last: number;
}
