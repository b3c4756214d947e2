import { Counter, Gauge, Histogram, Registry } from "prom-client";
import type { ServerFigures, ServerMeter } from "../server/meter.ts";
import { METHODS } from "../server/roles.ts";
import type { Figures, How, WorkerMeter } from "../worker/index.ts";
import { type HostFigures, watchHost } from "./host.ts";

/** Seconds from the request to exec: a start takes one to three ms on an idle machine. */
const START_SECONDS = [0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];
const HOWS: readonly How["kind"][] = ["exited", "signalled", "stopped", "timed-out", "out-of-memory", "lost"];
/** How many values a bounded label may have. What comes after those is counted as "other". */
const MOST_REASONS = 100;
const NANOSECONDS = 1e-9;

/** What is asked for its figures at each scrape. */
export interface Sources {
  readonly worker: { figures(): Figures };
  readonly server: { figures(): ServerFigures };
  readonly stateDir: string;
}

/** The metrics of a daemon. Names and units are as Prometheus has them (prometheus.io/docs/practices/naming). */
export interface Metrics extends Disposable {
  readonly worker: WorkerMeter;
  readonly server: ServerMeter;
  /** Returns all metrics in Prometheus' text format; the figures of `sources` are those of now. */
  scrape(sources: Sources): Promise<string>;
}

/** Opens metrics that begin with 0. No label is a job's id, or anything else that a client chooses. */
export function openMetrics(version: string): Metrics {
  const register = new Registry();
  const host = watchHost();
  new Gauge({
    name: "jobsd_build_info",
    help: "1; the labels tell which jobsd this is, and which Node runs it",
    labelNames: ["version", "node"],
    registers: [register],
  }).set({ version, node: process.versions.node }, 1);
  const worker = workerMeter(register);
  const server = serverMeter(register);
  const setFigures = figureGauges(register);
  const setHost = hostGauges(register);
  return {
    worker,
    server,
    async scrape({ worker: from, server: serving, stateDir }) {
      setHost(await host.figures(stateDir));
      setFigures(from.figures(), serving.figures());
      return register.metrics();
    },
    [Symbol.dispose]: () => host[Symbol.dispose](),
  };
}

function counter<Label extends string = never>(
  register: Registry,
  name: string,
  help: string,
  labelNames: Label[] = [],
): Counter<Label> {
  return new Counter({ name: `jobsd_${name}`, help, labelNames, registers: [register] });
}

function gauge<Label extends string = never>(
  register: Registry,
  name: string,
  help: string,
  labelNames: Label[] = [],
): Gauge<Label> {
  return new Gauge({ name, help, labelNames, registers: [register] });
}

function workerMeter(register: Registry): WorkerMeter {
  const starts = counter(register, "starts_total", "starts, by what became of each", ["result"]);
  const seconds = new Histogram({
    name: "jobsd_start_duration_seconds",
    help: "time from a start's request to the exec of its command",
    buckets: START_SECONDS,
    registers: [register],
  });
  const ends = counter(register, "job_ends_total", "jobs that have ended, by how", ["how"]);
  const output = counter(register, "job_output_bytes_total", "output that jobs had written when they ended");
  const dropped = counter(register, "job_output_dropped_bytes_total", "the part of that output that was not kept");
  for (const result of ["started", "repeated"]) starts.inc({ result }, 0);
  for (const how of HOWS) ends.inc({ how }, 0);
  return {
    started(_, tookMs) {
      starts.inc({ result: "started" });
      seconds.observe(tookMs / 1000);
    },
    repeated: () => starts.inc({ result: "repeated" }),
    refused: (result) => starts.inc({ result }),
    ended({ ended, output: { size, dropped: lost } }) {
      if (ended) ends.inc({ how: ended.how.kind });
      output.inc(size);
      dropped.inc(lost);
    },
  };
}

function serverMeter(register: Registry): ServerMeter {
  const labels = new Map([...METHODS].map((path) => [path, methodLabels(path)]));
  const calls = counter(register, "calls_total", "calls that are over, by gRPC's name for the status", [
    "service",
    "method",
    "code",
  ]);
  const open = gauge(register, "jobsd_open_calls", "calls that are open", ["service", "method"]);
  const refused = counter(register, "calls_refused_total", "calls that were denied, by reason", ["reason"]);
  const connections = counter(register, "connections_refused_total", "connections that were refused, by reason", [
    "reason",
  ]);
  const sent = counter(register, "stream_bytes_total", "bytes of output that were handed on to clients");
  const gaps = counter(register, "stream_gaps_total", "gaps that clients were told of");
  const gapBytes = counter(register, "stream_gap_bytes_total", "bytes in these gaps, which were not kept");
  const unrecorded = counter(register, "audit_failures_total", "records that the audit log did not take");
  for (const each of labels.values()) {
    open.set(each, 0);
    calls.inc({ ...each, code: "OK" }, 0);
  }
  const reasonOf = bounded();
  return {
    opened: (path) => open.inc(labels.get(path) ?? methodLabels("")),
    closed(path, code) {
      const which = labels.get(path) ?? methodLabels("");
      open.dec(which);
      calls.inc({ ...which, code });
    },
    refused: (reason) => refused.inc({ reason: reasonOf(reason) }),
    refusedConnection: (reason) => connections.inc({ reason: reasonOf(reason) }),
    sent: (bytes) => sent.inc(bytes),
    gap(bytes) {
      gaps.inc();
      gapBytes.inc(bytes);
    },
    unrecorded: () => unrecorded.inc(),
  };
}

function methodLabels(path: string): { readonly service: string; readonly method: string } {
  const [, service = "other", method = "other"] = /^\/([\w.]+)\/(\w+)$/.exec(path) ?? [];
  return { service, method };
}

/** Bounds the values of a label: what is no name of an error, or one too many, is "other". */
function bounded(): (reason: string) => string {
  const seen = new Set<string>();
  return (reason) => {
    if (seen.has(reason)) return reason;
    if (seen.size >= MOST_REASONS || !/^\w{1,64}$/.test(reason)) return "other";
    seen.add(reason);
    return reason;
  };
}

function figureGauges(register: Registry): (worker: Figures, server: ServerFigures) => void {
  const jobs = gauge(register, "jobsd_jobs", "jobs that have not ended, by state", ["state"]);
  const ended = gauge(register, "jobsd_ended_jobs", "jobs that have ended and are kept; NaN until they are counted");
  const maxJobs = gauge(register, "jobsd_jobs_limit", "the most jobs at once (--max-jobs)");
  const starts = gauge(register, "jobsd_starts_waiting", "starts that wait for a supervisor");
  const writes = gauge(register, "jobsd_journal_queue_writes", "writes that the journal's disk could not take yet");
  const logs = gauge(
    register,
    "jobsd_retention_queue_logs",
    "logs of ended jobs that wait to be compressed or removed",
  );
  const archive = gauge(register, "jobsd_archive_queue_logs", "logs of ended jobs that wait for the archive");
  const connections = gauge(register, "jobsd_connections", "connections of clients with a certificate");
  const notAfter = gauge(
    register,
    "jobsd_certificate_not_after_timestamp_seconds",
    "when a certificate of the daemon's own or of a CA that it trusts expires, or a list of revoked ones",
    ["use", "subject"],
  );
  return (worker, server) => {
    for (const [state, count] of Object.entries(worker.jobs)) jobs.set({ state }, count);
    ended.set(worker.endedJobs ?? Number.NaN);
    maxJobs.set(worker.maxJobs);
    starts.set(worker.waitingStarts);
    writes.set(worker.waitingWrites);
    logs.set(worker.waitingLogs);
    archive.set(worker.waitingArchive);
    connections.set(server.connections);
    notAfter.reset();
    // While a CA is replaced there are two of its name: the series is that of the first to expire.
    for (const { use, subject, notAfter: date } of sooner(server.certificates))
      notAfter.set({ use, subject }, date.getTime() / 1000);
  };
}

/** Sorts certificates so that those that expire sooner come later. */
function sooner(certificates: ServerFigures["certificates"]): ServerFigures["certificates"] {
  return certificates.toSorted((one, other) => other.notAfter.getTime() - one.notAfter.getTime());
}

function hostGauges(register: Registry): (figures: HostFigures) => void {
  const delay = gauge(
    register,
    "jobsd_event_loop_delay_seconds",
    "how late the event loop was since the scrape before; quantile 1 is the maximum",
    ["quantile"],
  );
  const busy = counter(register, "event_loop_busy_seconds_total", "time in which the event loop did not wait");
  const size = gauge(register, "jobsd_state_disk_size_bytes", "size of the disk with the state directory");
  const free = gauge(register, "jobsd_state_disk_free_bytes", "what is free of it for the daemon's user");
  const files = gauge(register, "jobsd_state_disk_files", "the most files on that disk; 0 where it has no limit");
  const freeFiles = gauge(register, "jobsd_state_disk_free_files", "how many of them can still be made");
  const journal = gauge(register, "jobsd_journal_size_bytes", "size of the journal's files");
  const own = processMetrics(register);
  return ({ delayNs, busyMs, disk, journalBytes, process }) => {
    for (const [quantile, ns] of Object.entries(delayNs)) delay.set({ quantile }, ns * NANOSECONDS);
    setCounter(busy, busyMs / 1000);
    size.set(disk.sizeBytes);
    free.set(disk.freeBytes);
    files.set(disk.files);
    freeFiles.set(disk.freeFiles);
    journal.set(journalBytes);
    own(process);
  };
}

/** The metrics that Prometheus' client libraries have of each process, under their usual names. */
function processMetrics(register: Registry): (figures: HostFigures["process"]) => void {
  const name = (what: string): string => `process_${what}`;
  const cpu = new Counter({
    name: name("cpu_seconds_total"),
    help: "processor time of the daemon, without its jobs",
    registers: [register],
  });
  const memory = gauge(register, name("resident_memory_bytes"), "memory of the daemon, without its jobs");
  const started = gauge(register, name("start_time_seconds"), "when the daemon was started");
  const fds = gauge(register, name("open_fds"), "descriptors that the daemon has open");
  const maxFds = gauge(register, name("max_fds"), "the most descriptors that it may have open");
  return (figures) => {
    setCounter(cpu, figures.cpuSeconds);
    memory.set(figures.residentBytes);
    started.set(figures.startSeconds);
    fds.set(figures.openFds);
    maxFds.set(figures.maxFds);
  };
}

/** Sets a counter to what somebody else counts. */
function setCounter(counter: Counter, value: number): void {
  counter.reset();
  counter.inc(value);
}
