import type { Part } from "./isolation.ts";
import type { LinuxResources } from "./resources.ts";

/**
 *   start()            exec'ed            stop() | time limit | main process ended       cgroup empty, log complete
 *  ────────▶ starting ────────▶ running ──────────────────────────────────────▶ stopping ────────▶ ended {how}
 *               └─ refused: no job, nothing left behind
 *
 * `ended` is final. A job whose supervisor died, or that a reboot ended, goes from any state to ended {lost}.
 */
export type State = "starting" | "running" | "stopping" | "ended";

/** How a job ended. */
export type How =
  | { readonly kind: "exited"; readonly code: number }
  | { readonly kind: "signalled"; readonly signal: number; readonly coreDumped: boolean }
  | { readonly kind: "stopped"; readonly by: string; readonly escalated: boolean }
  | { readonly kind: "timed-out"; readonly limitMs: number }
  | {
      readonly kind: "out-of-memory";
      readonly kills: number;
      readonly wholeJob?: boolean;
      /** All jobs of the owner together had the memory that they may have, and not this one alone. */
      readonly ofOwner?: boolean;
    }
  | { readonly kind: "lost"; readonly reason: string };

export interface Ended {
  readonly how: How;
  /** Exit code of the main process, 0 to 255; -1 if a signal ended it or it is lost. */
  readonly exitCode: number;
  /** The signal that ended the main process; 0 if none did. */
  readonly signal: number;
  /** Processes that had to be killed after the main process or the grace period. */
  readonly killed: number;
}

/** What a job used. A figure that the host does not give is absent. */
export interface Usage {
  /** Time since exec in ms, on the monotonic clock. */
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
  /** oom_kill of memory.events; exit.ts derives from it how many processes were killed. */
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
  /** The figures are of the whole cgroup; otherwise of the main process and the children that it waited for. */
  readonly fromCgroup: boolean;
}

/** How long some of a job's processes, or all that were not idle, waited for a resource: accounting/psi.rst. */
export interface Pressure {
  readonly some: Stall;
  readonly full?: Stall | undefined;
}

/** Percent of the last 10, 60 and 300 s, and the total since the job's start. */
export interface Stall {
  readonly avg10: number;
  readonly avg60: number;
  readonly avg300: number;
  readonly totalUs: number;
}

/** What a start asks for. Command, arguments, environment and directory are bytes, as text in the form of bytes.ts. */
export interface JobSpec {
  /** A path, or a name to look up in the job's PATH. */
  readonly command: string;
  readonly args?: readonly string[];
  /** Added to PATH, HOME, USER and LOGNAME, whose defaults it may replace. */
  readonly env?: ReadonlyMap<string, string>;
  /** An absolute path; `/` when absent. */
  readonly cwd?: string;
  /** A name or a number that the worker allows; when absent the worker's default user, or a uid of the job's own. */
  readonly user?: string;
  /** A name or a number: a group of the user's, or one that the worker allows; all of the user's groups when absent. */
  readonly group?: string;
  readonly labels?: ReadonlyMap<string, string>;
  readonly timeLimitMs?: number;
  readonly resources?: LinuxResources;
  /** The host's network when absent; `none` has only a loopback interface. */
  readonly network?: "host" | "none";
  /** The job has an empty /tmp and /var/tmp that nobody else sees and that end with it, as each job with its own uid has. */
  readonly privateTmp?: boolean;
  /** stderr goes into the same pipe as stdout, so that their order is exact, and all output counts as stdout. */
  readonly mergeOutput?: boolean;
  /** The job may make user namespaces, and use the capabilities that they give. */
  readonly userNamespaces?: boolean;
  readonly rlimits?: readonly NamedRlimit[];
  /** 0o022 when absent. */
  readonly umask?: number;
  /** 0 to 1000; 0 when absent. */
  readonly oomScoreAdj?: number;
  readonly log?: LogPolicy;
  /** A second start by the same owner with the same request id resolves to the first one's job. */
  readonly requestId?: string;
  /** The client that starts the job. */
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
  /** The parts of its isolation. This and what follows is absent when the job's record was lost. */
  readonly isolation?: readonly Part[];
  readonly network?: "host" | "none";
  readonly privateTmp?: boolean;
  readonly mergeOutput?: boolean;
  readonly userNamespaces?: boolean;
  readonly rlimits?: readonly NamedRlimit[];
  readonly umask?: number;
  readonly oomScoreAdj?: number;
  /** cgroup file → content, read back after writing. */
  readonly limits: ReadonlyMap<string, string>;
  readonly owner: string;
  /** The main process; 0 when the job never ran. */
  readonly pid: number;
  /** Together with the pid this identifies the main process for good. Absent when it could not be found out. */
  readonly birth?: string;
  readonly createdAt: Date;
  readonly startedAt?: Date;
  readonly endedAt?: Date;
  readonly ended?: Ended;
  readonly usage?: Usage;
  readonly output: OutputExtent;
  /** What the start asked for, with the worker's choice filled in. Absent when the job's record was lost. */
  readonly logPolicy?: LogPolicy;
  /** Where the output log is; absent until the job has ended. */
  readonly log?: JobLog;
  readonly warnings: readonly string[];
  /** What is wrong with the record, of which then only the id, the owner and the place of the log are known. */
  readonly damaged?: string;
}

/** Byte offsets in a job's output. */
export interface OutputExtent {
  /** The offset that the next byte will have. */
  readonly size: number;
  /** The offset of the oldest byte that is still kept. */
  readonly first: number;
  /** Bytes that were not kept, because of the log's limit or a full disk. */
  readonly dropped: number;
}

/** Why a log was pruned: its age, the number or the size of all logs, the free space of the disk, its own policy, or its files were gone. */
export type PruneReason = "age" | "count" | "size" | "free" | "keep-for" | "missing";

/**
 * Where the output log of an ended job is. `bytes` is the room that it takes, or took, on the worker's disk. `due` says that
 * it still has to be compressed or archived.
 */
export type JobLog =
  | { readonly kind: "kept" | "compressed"; readonly bytes: number; readonly due?: boolean }
  | { readonly kind: "archived"; readonly at: Date; readonly compressed: boolean }
  | { readonly kind: "pruned"; readonly bytes: number; readonly at: Date; readonly why: PruneReason };

/** What becomes of a job's output log. The worker's options decide where a field is absent. */
export interface LogPolicy {
  /** The most bytes that are kept, with the index; 0 for no limit. */
  readonly limitBytes?: number;
  /** Which bytes to keep at the limit. */
  readonly keep?: "newest" | "oldest";
  /** How the log is compressed when the job has ended. */
  readonly compress?: "off" | "zstd";
  readonly archive?: boolean;
  /** Time from the job's end until the log is pruned. */
  readonly keepForMs?: number;
}

/** A limit of setrlimit(2), by name. An absent value means no limit. */
export interface NamedRlimit {
  readonly name: string;
  readonly soft?: number;
  readonly hard?: number;
}
