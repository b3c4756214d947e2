import {
  type Ended as ProtoEnded,
  Ending,
  type Finding as ProtoFinding,
  FindingState,
  Job as ProtoJob,
  type ListRequest,
  type Pressure as ProtoPressure,
  type PruneRequest,
  Source as ProtoSource,
  type Stall as ProtoStall,
  type StartRequest,
  State as ProtoState,
  type StatsRequest,
  type StopRequest,
  type StreamRequest,
  type Usage as ProtoUsage,
} from "../../proto/generated/jobs/v1/worker.ts";
import { bytesOf, readable, textOf } from "../os/bytes.ts";
import {
  type Brief,
  type Ended,
  type Finding,
  invalid,
  type Job,
  type JobSpec,
  type ListFilter,
  MOST_LISTED,
  type Position,
  type Pressure,
  type PruneFilter,
  quoted,
  type Source,
  type Stall,
  type State,
  type StatsOptions,
  type StreamOptions,
  type Usage,
} from "../worker/index.ts";
import { fromIsolation, toIsolation } from "./translate-isolation.ts";
import { fromLog, fromLogPolicy, toLogPolicy } from "./translate-log.ts";
import { fromResources, toResources } from "./translate-resources.ts";
import { defined, fromCount, fromMs, fromUs, namesIn, toCount, toMs } from "./translate-values.ts";

const DEFAULT_PAGE = 100;

const STATES = namesIn<"STATE", State, ProtoState>("STATE", ProtoState);
const FINDING_STATES = namesIn<"FINDING_STATE", Finding["state"], FindingState>("FINDING_STATE", FindingState);
const SOURCES = namesIn<"SOURCE", Source, ProtoSource>("SOURCE", ProtoSource);

/**
 * Translates a start. The job has `traceparent` as its variable TRACEPARENT, unless the request gives that. Throws JobError
 * `invalid` for values that the worker has no words for.
 */
export function toJobSpec(request: StartRequest, owner: string, traceparent?: string): JobSpec {
  const { labels, resources, timeLimit } = request;
  const program = toProgram(request);
  return {
    ...program,
    ...(traceparent !== undefined && { env: new Map([["TRACEPARENT", traceparent], ...(program.env ?? [])]) }),
    labels,
    owner,
    ...defined({
      user: request.user || undefined,
      group: request.group || undefined,
      requestId: request.requestId || undefined,
      mergeOutput: request.mergeOutput || undefined,
      timeLimitMs: timeLimit && toMs("time_limit", timeLimit),
      resources: resources && toResources(resources),
      log: request.log && toLogPolicy(request.log),
    }),
    ...toIsolation(request),
  };
}

/** Translates the command, each field from text or from bytes. Throws JobError `invalid` for a field that comes as both. */
function toProgram({
  command,
  args,
  env,
  cwd,
  argvBytes,
  environBytes,
  cwdBytes,
}: StartRequest): Pick<JobSpec, "command" | "args" | "env" | "cwd"> {
  if (argvBytes.length > 0 && (command !== "" || args.length > 0))
    throw invalid("argv_bytes", "stands for command and args: leave those out");
  if (cwdBytes.length > 0 && cwd !== "") throw invalid("cwd_bytes", "stands for cwd: leave that out");
  const [program = command, ...rest] = argvBytes.map(textOf);
  const variables = new Map(env);
  for (const [i, bytes] of environBytes.entries()) {
    const [name = "", ...value] = textOf(bytes).split("=");
    if (value.length === 0) throw invalid(`environ_bytes[${i}]`, 'has no "=": NAME=VALUE is right');
    if (variables.has(name)) throw invalid(`environ_bytes[${i}]`, `${quoted(name)} is there already`);
    variables.set(name, value.join("="));
  }
  const directory = cwdBytes.length > 0 ? textOf(cwdBytes) : cwd;
  return {
    command: program,
    args: argvBytes.length > 0 ? rest : args,
    env: variables,
    ...(directory !== "" && { cwd: directory }),
  };
}

/** Translates the signal and the grace period of a stop. Throws JobError `invalid`. */
export function toStop({ signal, grace }: StopRequest): { signal?: number; graceMs?: number } {
  return defined({ signal, graceMs: grace && toMs("grace", grace) });
}

/** Throws JobError `invalid`. */
export function toListFilter(request: ListRequest): ListFilter {
  const states = request.states.map((state, i) => STATES.nameOf(`states[${i}]`, state));
  return {
    limit: Math.min(request.limit || DEFAULT_PAGE, MOST_LISTED),
    ...defined({
      states: states.length > 0 ? states : undefined,
      labels: request.labels.size > 0 ? request.labels : undefined,
      pageToken: request.pageToken || undefined,
    }),
  };
}

const ENDINGS: ReadonlyMap<Ending, Ended["how"]["kind"]> = new Map([
  [Ending.ENDING_EXITED, "exited"],
  [Ending.ENDING_SIGNALLED, "signalled"],
  [Ending.ENDING_STOPPED, "stopped"],
  [Ending.ENDING_TIMED_OUT, "timed-out"],
  [Ending.ENDING_OUT_OF_MEMORY, "out-of-memory"],
  [Ending.ENDING_LOST, "lost"],
]);

/** Throws JobError `invalid`. */
export function toPruneFilter({ olderThan, endings, labels, archived, dryRun }: PruneRequest): PruneFilter {
  const ends = endings.map((ending, i) => {
    const kind = ENDINGS.get(ending);
    if (kind === undefined) throw invalid(`endings[${i}]`, `${ending} is no way in which a job ends`);
    return kind;
  });
  return {
    archived,
    dryRun,
    ...defined({
      olderThanMs: olderThan && toMs("older_than", olderThan),
      ends: ends.length > 0 ? ends : undefined,
      labels: labels.size > 0 ? labels : undefined,
    }),
  };
}

/** Throws JobError `invalid`. */
export function toStreamOptions(
  { position, follow, sources, times }: StreamRequest,
  signal: AbortSignal,
): StreamOptions {
  const names = new Set(sources.map((source, i) => SOURCES.nameOf(`sources[${i}]`, source)));
  const [source] = names;
  return {
    follow,
    times,
    signal,
    ...defined({ position: toPosition(position), source: names.size === 1 ? source : undefined }),
  };
}

const POSITIONS = { offset: "offset", tailBytes: "tail_bytes", tailLines: "tail_lines" } as const;

function toPosition(position: StreamRequest["position"]): Position | undefined {
  if (!position) return undefined;
  const count = toCount(POSITIONS[position.$case], position.value);
  if (position.$case === "offset") return { kind: "offset", offset: count };
  return { kind: position.$case === "tailBytes" ? "tail-bytes" : "tail-lines", count };
}

/** Translates a job. */
export function fromJob(job: Brief): ProtoJob {
  const { id, state, user, group, owner, pid, createdAt, startedAt, endedAt, output } = job;
  return {
    id,
    state: STATES.of(state),
    ...fromProgram(job),
    user,
    group,
    labels: new Map(job.labels),
    timeLimit: fromMs(job.timeLimitMs),
    resources: job.resources && fromResources(job.resources),
    limits: new Map(job.limits),
    owner,
    pid,
    createdAt,
    startedAt,
    endedAt,
    ended: job.ended && fromEnded(job.ended),
    usage: job.usage && fromUsage(job.usage),
    output: { size: BigInt(output.size), first: BigInt(output.first), dropped: BigInt(output.dropped) },
    warnings: [...job.warnings],
    damaged: job.damaged ?? "",
    isolation: fromIsolation(job),
    logPolicy: job.logPolicy && fromLogPolicy(job.logPolicy),
    log: job.log && fromLog(job.log),
    mergeOutput: job.mergeOutput ?? false,
    cut: (job.cut ?? []).map((name) => (name === "envNames" ? "env_names" : name)),
  };
}

/** Translates the command: as text, and as bytes where it is not UTF-8. */
function fromProgram({
  command,
  args,
  envNames,
  cwd,
}: Job): Pick<ProtoJob, "command" | "args" | "envNames" | "cwd" | "argvBytes" | "envNamesBytes" | "cwdBytes"> {
  // A job may have 200,000 arguments, so each is looked at once.
  const isText = (texts: readonly string[]): boolean => texts.every((text) => text.isWellFormed());
  const [argsAreText, namesAreText] = [isText(args), isText(envNames)];
  return {
    command: readable(command),
    args: argsAreText ? [...args] : args.map(readable),
    envNames: namesAreText ? [...envNames] : envNames.map(readable),
    cwd: readable(cwd),
    argvBytes: argsAreText && command.isWellFormed() ? [] : [command, ...args].map(bytesOf),
    envNamesBytes: namesAreText ? [] : envNames.map(bytesOf),
    cwdBytes: cwd.isWellFormed() ? Buffer.alloc(0) : bytesOf(cwd),
  };
}

export function fromFinding({
  state,
  reason = "",
  remedy = "",
  ...what
}: Omit<Finding, "area"> & { readonly area: string }): ProtoFinding {
  return { ...what, state: FINDING_STATES.of(state), reason, remedy };
}

function fromEnded({ how, exitCode, signal, killed }: Ended): ProtoEnded {
  return { how: fromHow(how), exitCode, signal, killed };
}

function fromHow(how: Ended["how"]): ProtoEnded["how"] {
  switch (how.kind) {
    case "exited":
      return { $case: "exited", value: { code: how.code } };
    case "signalled":
      return { $case: "signalled", value: { signal: how.signal, coreDumped: how.coreDumped } };
    case "stopped":
      return { $case: "stopped", value: { by: how.by, escalated: how.escalated } };
    case "timed-out":
      return { $case: "timedOut", value: { limit: fromMs(how.limitMs) } };
    case "out-of-memory":
      return {
        $case: "outOfMemory",
        value: { kills: BigInt(how.kills), wholeJob: how.wholeJob ?? false, ofOwner: how.ofOwner ?? false },
      };
    default:
      return { $case: "lost", value: { reason: how.reason } };
  }
}

/** Throws JobError `invalid`. */
export function toStatsOptions({ interval }: StatsRequest, signal: AbortSignal): StatsOptions {
  return { signal, ...defined({ intervalMs: interval && toMs("interval", interval) }) };
}

export function fromUsage(usage: Usage): ProtoUsage {
  return {
    elapsed: fromMs(usage.elapsedMs),
    cpuUser: fromUs(usage.cpuUserUs),
    cpuSystem: fromUs(usage.cpuSystemUs),
    cpuThrottled: fromUs(usage.cpuThrottledUs),
    memoryCurrent: fromCount(usage.memoryCurrentBytes),
    memoryPeak: fromCount(usage.memoryPeakBytes),
    ioReadBytes: fromCount(usage.ioReadBytes),
    ioWriteBytes: fromCount(usage.ioWriteBytes),
    processes: fromCount(usage.processes),
    processesPeak: fromCount(usage.processesPeak),
    memoryMaxEvents: fromCount(usage.memoryMaxEvents),
    oomKills: fromCount(usage.oomKills),
    fromCgroup: usage.fromCgroup,
    cpuPeriods: fromCount(usage.cpuPeriods),
    cpuThrottledPeriods: fromCount(usage.cpuThrottledPeriods),
    memorySwap: fromCount(usage.memorySwapBytes),
    memoryLowEvents: fromCount(usage.memoryLowEvents),
    memoryHighEvents: fromCount(usage.memoryHighEvents),
    oomEvents: fromCount(usage.oomEvents),
    oomGroupKills: fromCount(usage.oomGroupKills),
    ioReadOperations: fromCount(usage.ioReadOperations),
    ioWriteOperations: fromCount(usage.ioWriteOperations),
    processesMaxEvents: fromCount(usage.processesMaxEvents),
    cpuPressure: usage.cpuPressure && fromPressure(usage.cpuPressure),
    memoryPressure: usage.memoryPressure && fromPressure(usage.memoryPressure),
    ioPressure: usage.ioPressure && fromPressure(usage.ioPressure),
  };
}

function fromPressure({ some, full }: Pressure): ProtoPressure {
  return { some: fromStall(some), full: full && fromStall(full) };
}

function fromStall({ totalUs, ...averages }: Stall): ProtoStall {
  return { ...averages, total: fromUs(totalUs) };
}
