import { randomBytes } from "node:crypto";
import {
  accessSync,
  chmodSync,
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  rmSync,
  rmdirSync,
  type FSWatcher,
  watch,
  writeSync,
} from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import {
  createGroup,
  groupUsage,
  killGroup,
  openHierarchy,
  readLimits,
  removeGroup,
  type Hierarchy,
} from "./cgroup.ts";
import { JobError, invalid } from "./errors.ts";
import type { Ended, How, Job, JobSpec, State, Usage } from "./job.ts";
import { openJournal, type Record as Kept } from "./journal.ts";
import { openLog, readOutput, type Chunk, type Gap, type StreamOptions } from "./output.ts";
import { thisHost } from "./limits/host.ts";
import type { Setting } from "./limits/setting.ts";
import { settingsOf } from "./resources.ts";
import { checkSpec, environmentOf } from "./spec.ts";
import { openSpawner, SPARE } from "./supervisor.ts";
import { chooseCredentials } from "./users.ts";

export interface WorkerOptions {
  /** Holds the journal and the jobs' directories; made 0700 when it is not there. */
  readonly stateDir: string;
  /** In front of each job's id, so that ids tell which worker has the job. */
  readonly name?: string;
  /** Jobs run as this user when a start names none: a name or a number. `nobody` when the worker is root. */
  readonly user?: string;
  /** A start may name uid 0. */
  readonly allowRoot?: boolean;
  /** Bytes of output kept of each job, with its index; 0 for no limit. 256 MiB when absent. */
  readonly logLimitBytes?: number;
  /** What to keep when a log reaches its limit. */
  readonly logKeep?: "newest" | "oldest";
  /** Jobs at once; a start beyond it is refused as exhausted. */
  readonly maxJobs?: number;
  /** The cgroup v2 directory to make jobs' groups in, instead of one below the worker's own place. */
  readonly cgroup?: string;
  /** The native supervisor's binary. */
  readonly supervisor?: string;
  readonly log?: (level: "debug" | "info" | "warn" | "error", message: string, facts?: object) => void;
}

export interface Started {
  readonly job: Job;
  readonly alreadyStarted: boolean;
}

export interface Stopped {
  readonly job: Job;
  readonly killed: number;
}

export interface StopOptions {
  /** 1 to 64; SIGTERM when absent. */
  readonly signal?: number;
  /** From the signal to SIGKILL; 10 s when absent. */
  readonly graceMs?: number;
  readonly by: string;
}

export interface ListFilter {
  readonly states?: readonly State[];
  readonly labels?: ReadonlyMap<string, string>;
  /** At most so many, 1 to 1000. */
  readonly limit: number;
  readonly pageToken?: string;
}

/** Every method throws JobError; those that take a job's id throw `not-found` when there is none. */
export interface Worker {
  /** Resolves once the command has been exec'ed. */
  start(spec: JobSpec): Promise<Started>;
  /** Resolves once nothing of the job runs any more; `signal` only ends the waiting. */
  stop(id: string, options: StopOptions, signal?: AbortSignal): Promise<Stopped>;
  query(id: string): Job;
  /** Newest first; `nextPageToken` is absent on the last page. */
  list(filter: ListFilter): { readonly jobs: readonly Job[]; readonly nextPageToken?: string };
  /** Resolves when the job has ended. */
  wait(id: string, signal?: AbortSignal): Promise<Job>;
  /** A job's output; throws `not-found` at once, not at the first chunk. Returns where to resume. */
  stream(
    id: string,
    options: StreamOptions,
  ): AsyncGenerator<Chunk | Gap, { readonly offset: number; readonly job: Job }>;
  /** What this host can enforce, in one line. */
  readonly host: string;
  /** Lets go of everything; jobs keep running. */
  close(): Promise<void>;
}

const GRACE_MS = 10_000;
const LOG_LIMIT_BYTES = 256 * 1024 * 1024;
const LEAST_LOG_LIMIT_BYTES = 1024 * 1024;
const MAX_JOBS = 10_000;
const ID = /^[a-z0-9][a-z0-9.-]{0,99}$/;
const CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz";
const RANDOM_CHARS = 16;
const SIGKILL = 9;
const ORDER_BYTES = 16;
const NO_CGROUP =
  "this host has no usable cgroup v2: no limits, usage of the main process only, and a tree is ended by descent";

/** A job that has not ended, as this process knows it. */
interface Running {
  job: Job;
  readonly directory: string;
  readonly group: string | undefined;
  stoppedBy: string | undefined;
  readonly launched: PromiseWithResolvers<void>;
  readonly ended: PromiseWithResolvers<Job>;
  readonly followers: Set<() => void>;
  watcher?: FSWatcher;
}

/** Random bytes that are in no id yet: asked for many at a time, because asking takes longer than getting them. */
let unused = Buffer.alloc(0);

/** A ULID (github.com/ulid/spec) in lower case: sorts by time, 80 random bits. */
function newId(name: string | undefined): string {
  let time = Date.now();
  let id = "";
  for (let i = 0; i < 10; i++) {
    id = CROCKFORD.charAt(time % 32) + id;
    time = Math.floor(time / 32);
  }
  if (unused.length < RANDOM_CHARS) unused = randomBytes(RANDOM_CHARS * 64);
  for (const byte of unused.subarray(0, RANDOM_CHARS)) id += CROCKFORD.charAt(byte % 32);
  unused = unused.subarray(RANDOM_CHARS);
  return name === undefined ? id : `${name}.${id}`;
}

function aborted(signal: AbortSignal | undefined): Promise<never> {
  return new Promise((_resolve, reject) => {
    const stop = (): void => reject(new JobError("unavailable", "the waiting was given up"));
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}

function notFound(id: string): JobError {
  return new JobError("not-found", `there is no job ${JSON.stringify(id.slice(0, 100))}`, { field: "job_id" });
}

/** Makes a directory and those above it. Node's own `recursive` never returns where the file system refuses with ENOENT, as /proc does. */
function makeDirectory(path: string): void {
  if (existsSync(path)) return;
  makeDirectory(dirname(path));
  mkdirSync(path, { mode: 0o700 });
}

/** Lines of `key value`, as the supervisor writes them; undefined when there is no such file. */
function readRecord(directory: string, file: string): ReadonlyMap<string, string> | undefined {
  try {
    const lines = readFileSync(join(directory, file), "utf8").trim().split("\n");
    return new Map(lines.map((line) => [line.slice(0, line.indexOf(" ")), line.slice(line.indexOf(" ") + 1)]));
  } catch {
    return undefined;
  }
}

function defaultSupervisor(): string {
  return fileURLToPath(new URL("../../build/supervisor", import.meta.url));
}

function checkSettings(settings: readonly Setting[], hierarchy: Hierarchy): void {
  for (const { field, controller } of settings) {
    if (hierarchy.kind === "none")
      throw new JobError(
        "unsupported",
        `${field}: ${hierarchy.reason}, so this host enforces no limits; the ${controller} controller is missing`,
        {
          field,
          facts: { controller },
        },
      );
    if (!hierarchy.controllers.has(controller))
      throw new JobError(
        "unsupported",
        `${field}: the ${controller} controller is missing at ${hierarchy.path}, so this host cannot enforce it`,
        {
          field,
          facts: { controller },
        },
      );
  }
}

/** How a job ended, from its exit record and its cgroup's last figures. */
function endedOf(exit: ReadonlyMap<string, string> | undefined, usage: Usage, entry: Running): Ended {
  if (!exit)
    return {
      how: { kind: "lost", reason: "its supervisor ended without a record" },
      exitCode: -1,
      signal: 0,
      killed: 0,
    };
  const number = (key: string): number => Number(exit.get(key));
  const exitCode = number("code");
  const signal = number("signal");
  const oomKills = usage.oomKills ?? 0;
  let how: How =
    signal === 0 ? { kind: "exited", code: exitCode } : { kind: "signalled", signal, coreDumped: number("core") === 1 };
  if (exit.get("cause") === "stop")
    how = { kind: "stopped", by: entry.stoppedBy ?? "", escalated: number("escalated") === 1 };
  else if (exit.get("cause") === "timeout") how = { kind: "timed-out", limitMs: entry.job.timeLimitMs ?? 0 };
  else if (signal === SIGKILL && oomKills > 0) how = { kind: "out-of-memory", kills: oomKills };
  return { how, exitCode, signal, killed: number("killed") };
}

/** Opens the worker of a state directory. Throws JobError `unavailable` when another one has it or it cannot be used. */
export async function openWorker(options: WorkerOptions): Promise<Worker> {
  const { name, log = () => {}, logKeep = "newest", logLimitBytes = LOG_LIMIT_BYTES, maxJobs = MAX_JOBS } = options;
  if (name !== undefined && !/^[a-z0-9][a-z0-9-]{0,31}$/.test(name))
    throw invalid("name", "up to 32 of a-z 0-9 - are a worker's name");
  if (logLimitBytes !== 0 && !(logLimitBytes >= LEAST_LOG_LIMIT_BYTES))
    throw invalid("log limit", `${logLimitBytes} bytes is too small; ${LEAST_LOG_LIMIT_BYTES} is the least, 0 is none`);
  const stateDir = resolve(options.stateDir);
  const jobsDir = join(stateDir, "jobs");
  try {
    makeDirectory(jobsDir);
    chmodSync(stateDir, 0o700);
  } catch (error) {
    throw new JobError(
      "unavailable",
      `the state directory cannot be used: ${error instanceof Error ? error.message : String(error)}`,
      { cause: error },
    );
  }
  const supervisor = options.supervisor ?? defaultSupervisor();
  try {
    accessSync(supervisor, constants.X_OK);
  } catch (error) {
    throw new JobError("unavailable", `the supervisor cannot be run: ${supervisor}; make -C src/supervisor builds it`, {
      cause: error,
    });
  }
  using opened = new DisposableStack();
  const journal = opened.use(openJournal(stateDir));
  const hierarchy = openHierarchy(`jobs-${journal.instance}`, options.cgroup);
  opened.defer(() => leave(hierarchy));
  // Of a daemon that was killed. Its spares may be putting them away themselves.
  for (const file of readdirSync(jobsDir))
    if (file.startsWith(SPARE)) rmSync(join(jobsDir, file), { recursive: true, force: true });
  const spawner = opened.use(openSpawner(supervisor, jobsDir, (message) => log("error", message)));
  const running = new Map<string, Running>();
  const requests = new Map<string, Promise<Started>>();
  let closed = false;

  function track(job: Job): Running {
    const entry: Running = {
      job,
      directory: join(jobsDir, job.id),
      group: hierarchy.kind === "cgroup2" ? join(hierarchy.path, job.id) : undefined,
      stoppedBy: undefined,
      launched: Promise.withResolvers(),
      ended: Promise.withResolvers(),
      followers: new Set(),
    };
    entry.launched.promise.catch(() => {});
    entry.ended.promise.catch(() => {});
    running.set(job.id, entry);
    return entry;
  }

  function usageOf(entry: Running, exit?: ReadonlyMap<string, string>): Usage {
    const elapsedMs = exit
      ? Number(exit.get("elapsed_ns")) / 1e6
      : Date.now() - (entry.job.startedAt?.getTime() ?? Date.now());
    if (entry.group !== undefined && hierarchy.kind === "cgroup2") {
      try {
        return { elapsedMs, ...groupUsage(entry.group, hierarchy.controllers) };
      } catch {
        // The group is gone: after a reboot, or removed under us.
      }
    }
    const cpu = { cpuUserUs: Number(exit?.get("user_us") ?? 0), cpuSystemUs: Number(exit?.get("system_us") ?? 0) };
    return {
      elapsedMs,
      ...cpu,
      ...(exit && { memoryPeakBytes: Number(exit.get("max_rss_bytes")) }),
      fromCgroup: false,
    };
  }

  /** Its supervisor is gone, so the job has ended. */
  async function finish(entry: Running): Promise<void> {
    if (closed) return;
    const exit = readRecord(entry.directory, "exit");
    if (!exit && entry.group !== undefined) killGroup(entry.group);
    const usage = usageOf(entry, exit);
    if (entry.group !== undefined) await removeGroup(entry.group);
    if (closed) return;
    entry.job = {
      ...entry.job,
      state: "ended",
      pid: Number(exit?.get("pid") ?? entry.job.pid),
      ...(exit && { startedAt: new Date(Number(exit.get("started_ns")) / 1e6) }),
      endedAt: exit ? new Date(Number(exit.get("ended_ns")) / 1e6) : new Date(),
      ended: endedOf(exit, usage, entry),
      usage,
      output: exit
        ? { size: Number(exit.get("size")), first: Number(exit.get("first")), dropped: Number(exit.get("dropped")) }
        : extentOf(entry),
    };
    journal.update(entry.job);
    running.delete(entry.job.id);
    entry.watcher?.close();
    entry.ended.resolve(entry.job);
    for (const wake of entry.followers) wake();
    setImmediate(() => {
      // Those who waited for the end have been answered.
      if (!closed) spawner.refill();
      log("info", "job ended", { job: entry.job.id, how: entry.job.ended?.how });
    });
  }

  function gone(entry: Running): void {
    // A short job is gone before its start has been told.
    const told = entry.launched.promise.then(() => finish(entry));
    told.catch((error: unknown) => log("error", "a job's end could not be recorded", { job: entry.job.id, error }));
  }

  function extentOf(entry: Running): Job["output"] {
    try {
      using output = openLog(entry.directory);
      return output.extent();
    } catch {
      return entry.job.output;
    }
  }

  function startOf(entry: Running): ReturnType<ReturnType<typeof openLog>["header"]>["started"] {
    try {
      using output = openLog(entry.directory);
      return output.header().started;
    } catch {
      return undefined;
    }
  }

  function current(entry: Running): Job {
    return { ...entry.job, usage: usageOf(entry), output: extentOf(entry) };
  }

  function find(id: string): Running | Kept {
    const entry = running.get(id) ?? (ID.test(id) ? journal.find(id) : undefined);
    if (!entry) throw notFound(id);
    return entry;
  }

  function isRunning(entry: Running | Kept): entry is Running {
    return "launched" in entry;
  }

  async function begin(spec: JobSpec): Promise<Started> {
    const credentials = chooseCredentials(spec, options);
    const settings = settingsOf(spec.resources ?? {}, thisHost(hierarchy.kind === "none" ? undefined : hierarchy.path));
    checkSettings(settings, hierarchy);
    if (running.size >= maxJobs)
      throw new JobError("exhausted", `${maxJobs} jobs run already, which is this worker's most (jobsd --max-jobs)`);
    const env = environmentOf(spec, credentials);
    const job: Job = {
      id: newId(name),
      state: "starting",
      command: spec.command,
      args: spec.args ?? [],
      envNames: [...env.keys()],
      cwd: spec.cwd ?? "/",
      user: credentials.user,
      group: credentials.group,
      labels: spec.labels ?? new Map(),
      ...(spec.timeLimitMs !== undefined && { timeLimitMs: spec.timeLimitMs }),
      ...(spec.resources && { resources: spec.resources }),
      limits: new Map(),
      owner: spec.owner,
      pid: 0,
      createdAt: new Date(),
      output: { size: 0, first: 0, dropped: 0 },
      warnings: hierarchy.kind === "none" ? [NO_CGROUP] : [],
    };
    const entry = track(job);
    try {
      const limits = entry.group === undefined ? job.limits : createGroup(entry.group, settings);
      const launch = {
        directory: entry.directory,
        cgroup: entry.group ?? "",
        cwd: job.cwd,
        argv: [job.command, ...job.args],
        env,
        credentials,
        timeLimitMs: job.timeLimitMs ?? 0,
        graceMs: GRACE_MS,
        logLimitBytes,
        logKeep,
      };
      const record = (): unknown => journal.insert({ ...job, limits }, spec.requestId);
      const pid = await spawner.launch(launch, record, () => gone(entry));
      entry.job = { ...job, state: "running", pid, startedAt: new Date(), limits };
      entry.launched.resolve();
    } catch (error) {
      // Where the spawner died under it, nobody knows whether it runs.
      order(entry, SIGKILL, 0);
      if (entry.group !== undefined) {
        killGroup(entry.group);
        await removeGroup(entry.group);
      }
      rmSync(entry.directory, { recursive: true, force: true });
      journal.remove(job.id);
      running.delete(job.id);
      const refused = refusal(error);
      entry.launched.reject(refused);
      entry.ended.reject(notFound(job.id));
      throw refused;
    }
    // The journal is not told: what it has, and the log's header, are all that a restart needs.
    setImmediate(() => log("info", "job started", { job: job.id, pid: entry.job.pid, owner: job.owner }));
    return { job: entry.job, alreadyStarted: false };
  }

  /** Of a start that did not happen; nobody waits for it. */
  function discardGroup(group: string): void {
    killGroup(group);
    removeGroup(group).catch((error: unknown) => log("error", "a cgroup could not be removed", { group, error }));
  }

  /** Takes up the jobs of the daemon before this one. */
  function recover({ job, stoppedBy }: Kept): void {
    const entry = track(job);
    entry.stoppedBy = stoppedBy;
    const started = startOf(entry);
    if (!started && !readRecord(entry.directory, "exit")) {
      // Its start was cut before exec: it did not happen. Whoever asked can find that out by its request id.
      running.delete(job.id);
      if (entry.group !== undefined) discardGroup(entry.group);
      rmSync(entry.directory, { recursive: true, force: true });
      journal.remove(job.id);
      return;
    }
    if (started)
      entry.job = {
        ...job,
        state: stoppedBy === undefined ? "running" : "stopping",
        pid: started.pid,
        startedAt: started.at,
        limits: entry.group === undefined ? job.limits : readLimits(entry.group, job.limits.keys()),
      };
    entry.launched.resolve();
    if (journal.rebooted) gone(entry);
    else spawner.adopt(entry.directory, () => gone(entry));
  }

  /** Tells the job's supervisor to end it. That it is gone already is no error: its end is on its way. */
  function order(entry: Running, signal: number, graceMs: number): void {
    const bytes = Buffer.alloc(ORDER_BYTES);
    bytes.writeInt32LE(signal, 0);
    bytes.writeBigInt64LE(BigInt(Math.ceil(graceMs)), 8);
    try {
      const fd = openSync(join(entry.directory, "control"), constants.O_WRONLY | constants.O_NONBLOCK);
      try {
        writeSync(fd, bytes);
      } finally {
        closeSync(fd);
      }
    } catch (error) {
      const code = error instanceof Error && "code" in error ? error.code : undefined;
      if (code !== "ENXIO" && code !== "EPIPE" && code !== "ENOENT")
        throw new JobError("exhausted", `the job's supervisor cannot be reached (${String(code)})`, { cause: error });
    }
  }

  function subscribe(entry: Running, wake: () => void): Disposable {
    entry.followers.add(wake);
    entry.watcher ??= watch(join(entry.directory, "output"), () => {
      for (const follower of entry.followers) follower();
    });
    return {
      [Symbol.dispose]() {
        entry.followers.delete(wake);
        if (entry.followers.size > 0) return;
        entry.watcher?.close();
        delete entry.watcher;
      },
    };
  }

  async function* read(entry: Running | Kept, streaming: StreamOptions): ReturnType<Worker["stream"]> {
    using output = openLog(join(jobsDir, entry.job.id)); // here, because a generator that nobody reads closes nothing
    const live = isRunning(entry)
      ? { ended: () => closed || entry.job.state === "ended", subscribe: (wake: () => void) => subscribe(entry, wake) }
      : { ended: () => true, subscribe: () => ({ [Symbol.dispose]() {} }) };
    const offset = yield* readOutput(output, live, streaming);
    return { offset, job: isRunning(entry) && entry.job.state !== "ended" ? current(entry) : entry.job };
  }

  for (const kept of journal.alive()) recover(kept);
  if (hierarchy.kind === "cgroup2")
    // A start that was cut before it was recorded has left at most its group.
    for (const { name: id } of readdirSync(hierarchy.path, { withFileTypes: true }).filter((each) =>
      each.isDirectory(),
    ))
      if (!running.has(id)) discardGroup(join(hierarchy.path, id));
  await spawner.ready;
  opened.move(); // close() lets go of them

  return {
    host:
      hierarchy.kind === "none"
        ? `${NO_CGROUP} (${hierarchy.reason})`
        : `cgroup v2 at ${hierarchy.path}, controllers: ${[...hierarchy.controllers].join(", ") || "none"}`,

    async start(spec) {
      if (closed) throw new JobError("unavailable", "the worker is closing");
      checkSpec(spec);
      if (spec.requestId === undefined) return begin(spec);
      const key = JSON.stringify([spec.owner, spec.requestId]);
      const inFlight = requests.get(key);
      if (inFlight) return { ...(await inFlight), alreadyStarted: true };
      const earlier = journal.findRequest(spec.owner, spec.requestId);
      if (earlier) return { job: running.get(earlier.job.id)?.job ?? earlier.job, alreadyStarted: true };
      const start = begin(spec);
      requests.set(key, start);
      try {
        return await start;
      } finally {
        requests.delete(key);
      }
    },

    async stop(id, { signal = 15, graceMs = GRACE_MS, by }, waiting) {
      if (!Number.isInteger(signal) || signal < 1 || signal > 64)
        throw invalid("signal", `${signal} is no signal; 1 to 64 are`);
      if (!(graceMs >= 0 && graceMs <= Number.MAX_SAFE_INTEGER))
        throw invalid("grace", `${graceMs} ms is none; 0 or more are`);
      const entry = find(id);
      if (!isRunning(entry)) return { job: entry.job, killed: 0 };
      await entry.launched.promise.catch(() => {
        throw notFound(id);
      });
      journal.stopping(id, by);
      entry.stoppedBy ??= by;
      if (entry.job.state === "running") entry.job = { ...entry.job, state: "stopping" };
      order(entry, signal, graceMs);
      const job = await Promise.race([entry.ended.promise, aborted(waiting)]);
      return { job, killed: job.ended?.killed ?? 0 };
    },

    query(id) {
      const entry = find(id);
      return isRunning(entry) ? current(entry) : entry.job;
    },

    list({ states, labels = new Map(), limit, pageToken }) {
      if (!Number.isInteger(limit) || limit < 1 || limit > 1000) throw invalid("limit", "must be 1 to 1000");
      const before = pageToken === undefined ? Number.MAX_SAFE_INTEGER : Number(pageToken);
      if (!Number.isSafeInteger(before)) throw invalid("page_token", "is not one that List gave");
      // What runs is known here better than in the journal.
      const now = (job: Job): Job => running.get(job.id)?.job ?? job;
      const wanted = (job: Job): boolean =>
        (states === undefined || states.includes(now(job).state)) &&
        [...labels].every(([key, value]) => job.labels.get(key) === value);
      const found = journal.list(wanted, before, limit + 1, states?.includes("ended") === false);
      const page = found.slice(0, limit);
      const last = page.at(-1);
      return {
        jobs: page.map(({ job }) => {
          const entry = running.get(job.id);
          return entry ? current(entry) : job;
        }),
        ...(found.length > limit && last && { nextPageToken: String(last.seq) }),
      };
    },

    async wait(id, waiting) {
      const entry = find(id);
      return isRunning(entry) ? Promise.race([entry.ended.promise, aborted(waiting)]) : entry.job;
    },

    stream(id, streaming) {
      const { position } = streaming;
      const place = position?.kind === "offset" ? position.offset : (position?.count ?? 0);
      if (!Number.isSafeInteger(place) || place < 0)
        throw invalid("position", `${place} is not a whole number of 0 or more`);
      const entry = find(id);
      if (!existsSync(join(jobsDir, entry.job.id, "output")))
        throw new JobError("not-found", `the output of ${id} is not there`);
      return read(entry, streaming);
    },

    async close() {
      closed = true;
      await Promise.allSettled([...running.values()].map(({ launched }) => launched.promise));
      await spawner.close();
      for (const entry of running.values()) {
        entry.watcher?.close();
        entry.ended.reject(new JobError("unavailable", "the worker is closing"));
        for (const wake of entry.followers) wake();
      }
      journal[Symbol.dispose]();
      leave(hierarchy);
    },
  };
}

function leave(hierarchy: Hierarchy): void {
  try {
    if (hierarchy.kind === "cgroup2") rmdirSync(hierarchy.path);
  } catch {
    // Jobs run in it.
  }
}

function refusal(error: unknown): JobError {
  if (error instanceof JobError) return error;
  const code = error instanceof Error && "code" in error ? String(error.code) : "unknown";
  const message = error instanceof Error ? error.message : String(error);
  return ["ENOSPC", "EDQUOT", "EMFILE", "ENFILE", "ENOMEM", "EAGAIN"].includes(code)
    ? new JobError("exhausted", `no room for another job on this host: ${message}`, {
        facts: { errno: code },
        cause: error,
      })
    : new JobError("internal", `the job could not be started: ${message}`, { facts: { errno: code }, cause: error });
}
