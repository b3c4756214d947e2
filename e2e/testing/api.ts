/** The messages of the API as the CLI prints them, as far as tests look at them. 64-bit numbers are strings. */

/** As in "1.5s". */
type Duration = `${number}s`;

export interface Query {
  readonly pid: number;
  readonly exitCode: number;
  readonly exited: boolean;
  readonly job: Job;
}

export interface Job {
  readonly id: string;
  readonly state: "STATE_STARTING" | "STATE_RUNNING" | "STATE_STOPPING" | "STATE_ENDED";
  readonly pid: number;
  readonly user: string;
  readonly group: string;
  readonly resources?: object;
  readonly limits?: Readonly<Record<string, string>>;
  readonly warnings?: readonly string[];
  readonly startedAt?: string;
  readonly endedAt?: string;
  readonly ended?: Ended;
  readonly usage: Usage;
  readonly output: { readonly size: string; readonly first: string; readonly dropped: string };
  readonly log?: { readonly place: string };
}

export interface Ended {
  readonly exitCode: number;
  readonly signal: number;
  readonly killed: number;
  readonly stopped?: { readonly by: string; readonly escalated: boolean };
  readonly outOfMemory?: { readonly kills: string; readonly wholeJob: boolean };
  readonly lost?: { readonly reason: string };
}

export interface Usage {
  readonly elapsed: Duration;
  readonly cpuUser: Duration;
  readonly cpuSystem: Duration;
  readonly cpuThrottled?: Duration;
  readonly memoryPeak?: string;
  readonly processes?: string;
  readonly processesPeak?: string;
  readonly oomKills?: string;
  readonly oomGroupKills?: string;
  readonly ioWriteBytes?: string;
  readonly cpuPeriods?: string;
  readonly cpuThrottledPeriods?: string;
  readonly cpuPressure?: Pressure;
  readonly memoryPressure?: Pressure;
  readonly fromCgroup: boolean;
}

export interface Pressure {
  readonly some: { readonly avg10: number; readonly total: Duration };
}

export interface StatsMessage {
  readonly usage: Usage;
  readonly end?: Job;
}

export interface StreamMessage {
  /** Base64. */
  readonly output: string;
  readonly source: "SOURCE_UNSPECIFIED" | "SOURCE_STDOUT" | "SOURCE_STDERR";
  readonly offset: string;
  readonly gap: string;
  readonly end?: Job;
}

export interface Examined {
  readonly findings: readonly {
    readonly area: string;
    readonly name: string;
    readonly state: "FINDING_STATE_ENFORCED" | "FINDING_STATE_LIMITED" | "FINDING_STATE_MISSING";
    readonly meaning: string;
    readonly reason: string;
    readonly remedy: string;
  }[];
}

/** A line of the audit log. */
export interface AuditRecord {
  readonly event: "call" | "connection";
  readonly stage?: "begin" | "end";
  readonly method?: string;
  readonly principal?: AuditedPrincipal;
  readonly presented?: AuditedPrincipal;
  readonly decision: "allowed" | "denied";
  readonly reason?: string;
  readonly code?: string;
  readonly jobId?: string;
  readonly request?: { readonly limits?: readonly string[] };
}

interface AuditedPrincipal {
  readonly name: string;
  readonly role?: string;
}

export function seconds(duration: Duration): number {
  return Number(duration.slice(0, -1));
}
