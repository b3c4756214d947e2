import type { Part } from "./isolation.ts";
import type { LinuxResources } from "./resources.ts";
import type { NamedRlimit } from "./rlimits.ts";

/**
 *   start()            exec'ed            stop() | time limit | main process ended       cgroup empty, log complete
 *  ────────▶ starting ────────▶ running ──────────────────────────────────────▶ stopping ────────▶ ended {how}
 *               └─ refused: no job, nothing left behind
 *
 * `ended` is final. A job whose supervisor died, or that a reboot took, goes from any state to ended {lost}.
 */
export type State = "starting" | "running" | "stopping" | "ended";

/** How a job ended. */
export type How =
  | { readonly kind: "exited"; readonly code: number }
  | { readonly kind: "signalled"; readonly signal: number; readonly coreDumped: boolean }
  | { readonly kind: "stopped"; readonly by: string; readonly escalated: boolean }
  | { readonly kind: "timed-out"; readonly limitMs: number }
  | { readonly kind: "out-of-memory"; readonly kills: number; readonly wholeJob?: boolean }
  | { readonly kind: "failed-to-start"; readonly stage: string; readonly errno: number; readonly message: string }
  | { readonly kind: "lost"; readonly reason: string };

export interface Ended {
  readonly how: How;
  /** Of the main process, 0 to 255; -1 if it did not exit by itself. */
  readonly exitCode: number;
  /** That ended the main process; 0 if none did. */
  readonly signal: number;
  /** Processes that had to be killed after the main process or the grace period. */
  readonly killed: number;
}

/** What a job used. Absent figures are those that the host does not tell. */
export interface Usage {
  /** Wall clock since exec, by the monotonic clock, in ms. */
  readonly elapsedMs: number;
  readonly cpuUserUs: number;
  readonly cpuSystemUs: number;
  readonly cpuThrottledUs?: number | undefined;
  readonly memoryCurrentBytes?: number | undefined;
  readonly memoryPeakBytes?: number | undefined;
  readonly ioReadBytes?: number | undefined;
  readonly ioWriteBytes?: number | undefined;
  readonly processes?: number | undefined;
  readonly processesPeak?: number | undefined;
  readonly memoryMaxEvents?: number | undefined;
  /** As memory.events counts: exit.ts tells how many processes that were. */
  readonly oomKills?: number | undefined;
  readonly cpuPeriods?: number | undefined;
  readonly cpuThrottledPeriods?: number | undefined;
  readonly memorySwapBytes?: number | undefined;
  readonly memoryLowEvents?: number | undefined;
  readonly memoryHighEvents?: number | undefined;
  readonly oomEvents?: number | undefined;
  readonly oomGroupKills?: number | undefined;
  readonly ioReadOperations?: number | undefined;
  readonly ioWriteOperations?: number | undefined;
  readonly processesMaxEvents?: number | undefined;
  readonly cpuPressure?: Pressure | undefined;
  readonly memoryPressure?: Pressure | undefined;
  readonly ioPressure?: Pressure | undefined;
  /** Of the whole cgroup; else only of the main process and the children it waited for. */
  readonly fromCgroup: boolean;
}

/** How long some of a job's processes, and all that were not idle, had to wait for a resource: accounting/psi.rst. */
export interface Pressure {
  readonly some: Stall;
  readonly full?: Stall | undefined;
}

/** Percent of the last 10, 60 and 300 s, and the time since the job's start. */
export interface Stall {
  readonly avg10: number;
  readonly avg60: number;
  readonly avg300: number;
  readonly totalUs: number;
}

/** What is asked of a start. Command, arguments, environment and directory are bytes as bytes.ts has them in text. */
export interface JobSpec {
  /** A path, or a name that is looked up in the job's PATH. */
  readonly command: string;
  readonly args?: readonly string[];
  /** Replaces the default PATH, HOME, USER and LOGNAME where it names them. */
  readonly env?: ReadonlyMap<string, string>;
  /** An absolute path; `/` when absent. */
  readonly cwd?: string;
  /** A name or a number that the worker allows; when absent its default user, or a uid of the job's own. */
  readonly user?: string;
  /** A name or a number: one of the user's, or one that the worker allows; all of the user's when absent. */
  readonly group?: string;
  readonly labels?: ReadonlyMap<string, string>;
  readonly timeLimitMs?: number;
  readonly resources?: LinuxResources;
  /** The host's when absent; `none` has a loopback and nothing else. */
  readonly network?: "host" | "none";
  /** An empty /tmp and /var/tmp that nobody else sees and that end with the job; always so with a uid of its own. */
  readonly privateTmp?: boolean;
  /** stderr goes where stdout goes, so that their order is exact; all is stdout then. */
  readonly mergeOutput?: boolean;
  /** It may make user namespaces, and use what they give. */
  readonly userNamespaces?: boolean;
  readonly rlimits?: readonly NamedRlimit[];
  /** 0o022 when absent. */
  readonly umask?: number;
  /** 0 to 1000; 0 when absent. */
  readonly oomScoreAdj?: number;
  readonly log?: LogPolicy;
  /** A second start with the same one, of the same owner, answers the first one's job. */
  readonly requestId?: string;
  /** Who starts it. */
  readonly owner: string;
}

export interface Job {
  readonly id: string;
  readonly state: State;
  readonly command: string;
  readonly args: readonly string[];
  readonly envNames: readonly string[];
  readonly cwd: string;
  readonly user: string;
  readonly group: string;
  readonly labels: ReadonlyMap<string, string>;
  readonly timeLimitMs?: number;
  readonly resources?: LinuxResources;
  /** What keeps it from the host and from other jobs. Absent in records of before there was any. */
  readonly isolation?: readonly Part[];
  readonly network?: "host" | "none";
  readonly privateTmp?: boolean;
  readonly mergeOutput?: boolean;
  /** It may make user namespaces, and use what they give. */
  readonly userNamespaces?: boolean;
  readonly rlimits?: readonly NamedRlimit[];
  readonly umask?: number;
  readonly oomScoreAdj?: number;
  /** cgroup file → content, read back after writing. */
  readonly limits: ReadonlyMap<string, string>;
  readonly owner: string;
  /** 0 when the job never ran. */
  readonly pid: number;
  /** Of the main process: with the pid it names that one and no other, ever. Absent where nobody could tell. */
  readonly birth?: string;
  readonly createdAt: Date;
  readonly startedAt?: Date;
  readonly endedAt?: Date;
  readonly ended?: Ended;
  readonly usage?: Usage;
  readonly output: OutputExtent;
  /** As asked for, with the limit and what is kept at it. Absent in records of before there was any. */
  readonly logPolicy?: LogPolicy;
  /** Where its output log is; absent until it has ended. */
  readonly log?: JobLog;
  readonly warnings: readonly string[];
  /** What is wrong with its record, where no more can be told of it than its id, its owner, and where its log is. */
  readonly damaged?: string;
}

/** Byte offsets in a job's output log. */
export interface OutputExtent {
  /** Where the next byte will be. */
  readonly size: number;
  /** The oldest that is still kept. */
  readonly first: number;
  /** Bytes not kept, because of the log's limit or a full disk. */
  readonly dropped: number;
}

/** Why a log was pruned: its age, the number or the size of all, the disk's free space, or its job's own policy. */
export type PruneReason = "age" | "count" | "size" | "free" | "keep-for" | "missing";

/**
 * Where the output log of an ended job is. `bytes` are those that it takes, or took, on the worker's disk; `due`: it is to
 * be compressed or archived yet.
 */
export type JobLog =
  | { readonly kind: "kept" | "compressed"; readonly bytes: number; readonly due?: boolean }
  | { readonly kind: "archived"; readonly at: Date; readonly compressed: boolean }
  | { readonly kind: "pruned"; readonly bytes: number; readonly at: Date; readonly why: PruneReason };

/** What becomes of a job's output log; the worker's own choice where a field is absent. */
export interface LogPolicy {
  /** Bytes kept, with the index; 0 for no limit. */
  readonly limitBytes?: number;
  /** What to keep at the limit. */
  readonly keep?: "newest" | "oldest";
  /** Of the job's end on. */
  readonly compress?: "off" | "zstd";
  readonly archive?: boolean;
  /** From the job's end until the log is pruned. */
  readonly keepForMs?: number;
}
