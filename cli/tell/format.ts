import { type Isolation, type Job, Network, stateToJSON, type Usage } from "../../proto/generated/jobs/v1/worker.ts";
import { textOf } from "../../src/os/bytes.ts";
import { SIGNALS } from "../../src/os/signals.ts";
import { logFacts } from "./log-facts.ts";
import { columns, type Line, type Part, visible } from "./text.ts";
import { formatBytes, formatDuration, toMs } from "./units.ts";

const UMASK = 0o022;

/** How a job ended: a word without spaces for a column, and the end of a sentence. A job's state until then. */
export interface End {
  /** `running`, `exited(3)`, `killed(SIGSEGV)`. */
  readonly word: string;
  /** "exited with code 3". */
  readonly words: string;
}

export function describeEnd({ state, ended, usage }: Pick<Job, "state" | "ended"> & Partial<Pick<Job, "usage">>): End {
  if (!ended?.how) {
    const word = stateToJSON(state).replace("STATE_", "").toLowerCase();
    return { word, words: word };
  }
  const { how, killed } = ended;
  const outOfMemory = killedForMemory(usage);
  const left =
    (outOfMemory > 0 ? `; the kernel killed ${processes(outOfMemory)} of it for memory` : "") +
    (killed > 0 ? `; ${processes(killed)} left over had to be killed` : "");
  switch (how.$case) {
    case "exited":
      return { word: `exited(${how.value.code})`, words: `exited with code ${how.value.code}${left}` };
    case "signalled": {
      const name = signalName(how.value.signal);
      return {
        word: `killed(${name})`,
        words: `killed by ${name}${how.value.coreDumped ? " (core dumped)" : ""}${left}`,
      };
    }
    case "stopped":
      return how.value.escalated
        ? { word: "stopped(killed)", words: `stopped by ${how.value.by} and had to be killed` }
        : { word: "stopped", words: `stopped by ${how.value.by}` };
    case "timedOut":
      return { word: "timed-out", words: `timed out after ${formatDuration(how.value.limit)}${left}` };
    case "outOfMemory": {
      const { kills, wholeJob, ofOwner } = how.value;
      const what = wholeJob ? `the whole job, ${processes(kills)}` : processes(kills);
      const whose = ofOwner ? ", since all jobs of its owner had the memory that they may have" : "";
      return { word: "out-of-memory", words: `out of memory: the kernel killed ${what}${whose}` };
    }
    default:
      return { word: "lost", words: `lost: ${how.value.reason}` };
  }
}

/**
 * Counts the kernel's kills for memory in a job that survived them: memory.events counts the first kill of each whole group
 * twice.
 */
export function killedForMemory(usage: Usage | undefined): bigint {
  return (usage?.oomKills ?? 0n) - (usage?.oomGroupKills ?? 0n);
}

/** A job for a person, a line a fact. */
export function formatJob(job: Job): Line[] {
  const { usage } = job;
  const cpu = usage && [`${formatDuration(usage.cpuUser)} user`, `${formatDuration(usage.cpuSystem)} system`];
  if (cpu && toMs(usage.cpuThrottled) > 0) {
    const periods = `${usage.cpuThrottledPeriods ?? "?"} of ${usage.cpuPeriods ?? "?"} periods`;
    cpu.push(`throttled ${formatDuration(usage.cpuThrottled)} in ${periods}`);
  }
  const facts: [string, string | false | undefined][] = [
    ["command", formatCommand(job)],
    ["pid", job.pid > 0 && String(job.pid)],
    ["owner", job.owner],
    ["user", `${job.user}:${job.group}`],
    ["directory", job.cwd],
    ["environment", job.envNames.join(" ")],
    ["labels", pairs(job.labels)],
    ["created", job.createdAt?.toISOString()],
    ["started", job.startedAt?.toISOString()],
    ["ended", job.endedAt?.toISOString()],
    ["elapsed", usage?.elapsed && formatDuration(usage.elapsed)],
    ["time limit", job.timeLimit && formatDuration(job.timeLimit)],
    ["cpu", cpu?.join(", ")],
    ["memory", nowAndPeak(usage?.memoryCurrent, usage?.memoryPeak, formatBytes)],
    ["swap", usage?.memorySwap !== undefined && usage.memorySwap > 0n && `${formatBytes(usage.memorySwap)} now`],
    ["memory events", usage && memoryEvents(usage)],
    ["processes", nowAndPeak(usage?.processes, usage?.processesPeak, String) + refusedForks(usage?.processesMaxEvents)],
    ["disk", usage && diskUse(usage)],
    ["waited", usage && stalls(usage)],
    ["usage of", usage && !usage.fromCgroup && "the main process and the children it waited for"],
    ...logFacts(job),
    ["limits", formatLimits(job)],
    ["stderr", job.mergeOutput && "goes to stdout"],
    ["isolation", job.isolation && isolationWords(job.isolation)],
  ];
  const titled = (name: string): string => `${name}:`.padEnd(15);
  return [
    titled("id") + job.id,
    [titled("status"), coloured(job, describeEnd(job).words)],
    ...facts.flatMap(([name, value]) => (value ? [titled(name) + value] : [])),
    ...job.warnings.map((warning) => titled("warning") + warning),
  ];
}

/** Returns the limits as the kernel's files have them. */
export function formatLimits({ limits }: Pick<Job, "limits">): string {
  return pairs(new Map([...limits].map(([file, content]) => [file, content.trim().replaceAll("\n", "; ")])));
}

/** Columns with a header, the last one as long as it is. */
export function formatTable(jobs: readonly Job[]): Line[] {
  return columns([
    ["ID", "STATUS", "CREATED", "ELAPSED", "PID", "OWNER", "USER", "COMMAND"],
    ...jobs.map((job) => [
      job.id,
      coloured(job, describeEnd(job).word),
      job.createdAt?.toISOString().replace(/\.\d+/, "") ?? "-",
      formatDuration(job.usage?.elapsed),
      job.pid > 0 ? String(job.pid) : "-",
      job.owner || "-",
      job.user || "-",
      formatCommand(job),
    ]),
  ]);
}

/** The command line as a shell would take it. */
export function formatCommand({ command, args, argvBytes }: Pick<Job, "command" | "args" | "argvBytes">): string {
  return (argvBytes.length > 0 ? argvBytes.map(textOf) : [command, ...args]).map(quoteWord).join(" ");
}

function signalName(signal: number): string {
  const name = Object.entries(SIGNALS).find(([, number]) => number === signal)?.[0];
  return name ?? `signal ${signal}`;
}

/** "1 process", "2 processes". */
export function count(number: number | bigint, noun: string, plural = "s"): string {
  return `${number} ${noun}${Number(number) === 1 ? "" : plural}`;
}

function processes(number: number | bigint): string {
  return count(number, "process", "es");
}

function quoteWord(word: string): string {
  if (/^[\w@%+=:,./-]+$/.test(word)) return word;
  if (visible(word) === word) return `'${word.replaceAll("'", `'\\''`)}'`;
  return `$'${visible(word.replace(/[\\']/g, "\\$&"))}'`;
}

function coloured({ ended }: Job, text: string): Part {
  const good = !ended || (ended.how?.$case === "exited" && ended.how.value.code === 0);
  return { text, style: good ? "green" : "red" };
}

function pairs(map: ReadonlyMap<string, string>): string {
  return [...map].map(([key, value]) => `${key}=${value}`).join(", ");
}

function nowAndPeak(now: bigint | undefined, peak: bigint | undefined, format: (value: bigint) => string): string {
  return [now !== undefined && `${format(now)} now`, peak !== undefined && `${format(peak)} at most`]
    .filter(Boolean)
    .join(", ");
}

function memoryEvents(usage: Usage): string {
  const { memoryLowEvents = 0n, memoryHighEvents = 0n, memoryMaxEvents = 0n } = usage;
  return [
    memoryLowEvents > 0n && `${count(memoryLowEvents, "time")} below its reservation`,
    memoryHighEvents > 0n && `${count(memoryHighEvents, "time")} slowed down`,
    memoryMaxEvents > 0n && `${count(memoryMaxEvents, "time")} at the limit`,
    killedForMemory(usage) > 0n && `${processes(killedForMemory(usage))} killed for it`,
  ]
    .filter(Boolean)
    .join(", ");
}

function refusedForks(times = 0n): string {
  return times > 0n ? `, ${count(times, "fork")} refused` : "";
}

function diskUse({ ioReadBytes, ioWriteBytes = 0n, ioReadOperations = 0n, ioWriteOperations = 0n }: Usage): string {
  if (ioReadBytes === undefined) return "";
  const read = `${formatBytes(ioReadBytes)} read in ${count(ioReadOperations, "operation")}`;
  return `${read}, ${formatBytes(ioWriteBytes)} written in ${ioWriteOperations}`;
}

/** How long some of the job's processes waited for what. */
function stalls({ cpuPressure, memoryPressure, ioPressure }: Usage): string {
  const waited = Object.entries({ CPU: cpuPressure, memory: memoryPressure, disk: ioPressure });
  return waited
    .filter(([, pressure]) => toMs(pressure?.some?.total) >= 1)
    .map(([what, pressure]) => `${formatDuration(pressure?.some?.total)} for ${what}`)
    .join(", ");
}

function isolationWords({ parts, network, privateTmp, userNamespaces, ...rest }: Isolation): string {
  const { rlimits, umask, oomScoreAdj } = rest;
  const limit = (value: bigint | undefined): string => (value === undefined ? "unlimited" : String(value));
  return [
    ...parts,
    network === Network.NETWORK_NONE && "no network",
    privateTmp && "private /tmp",
    userNamespaces && "may make user namespaces",
    umask !== UMASK && `umask ${umask.toString(8).padStart(3, "0")}`,
    oomScoreAdj > 0 && `oom_score_adj ${oomScoreAdj}`,
    ...rlimits.map(({ name, soft, hard }) => `${name} ${limit(soft)}:${limit(hard)}`),
  ]
    .filter(Boolean)
    .join(", ");
}
