import { once } from "node:events";
import { connect as connectHttp2, type Settings } from "node:http2";
import { isIP } from "node:net";
import { PassThrough, type Writable } from "node:stream";
import { createSecureContext } from "node:tls";
import { type ClientOptions, credentials, type ServiceError } from "@grpc/grpc-js";
import { type Logger, pino } from "pino";
import { ErrorInfo, Status } from "../../../proto/generated/google/rpc/details.ts";
import { HealthClient } from "../../../proto/generated/grpc/health/v1/health.ts";
import { WorkerServiceClient } from "../../../proto/generated/jobs/v1/worker.ts";
import { JobError } from "../../worker/model/errors.ts";
import type { Job } from "../../worker/model/job.ts";
import type { Worker } from "../../worker/worker.ts";
import type { AuditRecord } from "../audit.ts";
import { serve, type Served, type ServeOptions } from "../server.ts";
import type { Authority, Pair } from "./authority.ts";

/** A server that runs, with the records and log lines that it wrote. */
export interface Running extends Served, AsyncDisposable {
  readonly audit: readonly AuditRecord[];
  /** The log's lines of level warn and above. */
  readonly logged: readonly { readonly level: number; readonly msg: string; readonly correlationId?: string }[];
}

export async function running(
  { ca, server }: Pick<Authority, "ca" | "server">,
  worker: Partial<Worker> = {},
  options: Partial<ServeOptions> = {},
): Promise<Running> {
  const audit: AuditRecord[] = [];
  const logged: Running["logged"][number][] = [];
  const served = await serve({
    worker: workerOf(worker),
    host: "127.0.0.1",
    port: 0,
    tls: { ca: ca.cert, ...server },
    audit: lines((line) => audit.push(JSON.parse(line))),
    log: logTo((entry) => logged.push(entry)),
    shutdownMs: 500,
    ...options,
  });
  return { ...served, audit, logged, [Symbol.asyncDispose]: () => served.close() };
}

/** Makes a log for tests; `each` is called with warnings and errors. */
export function logTo(each: (entry: Running["logged"][number]) => void): Logger {
  return pino(
    { level: "warn" },
    lines((line) => each(JSON.parse(line))),
  );
}

/** Makes a stream that hands on the lines written to it. */
function lines(each: (line: string) => void): Writable {
  const stream = new PassThrough();
  stream.on("data", (chunk: Buffer) => {
    for (const line of chunk.toString().split("\n").filter(Boolean)) each(line);
  });
  return stream;
}

/** Makes channel credentials. */
export function channelOf(ca: Pair, pair: Pair | undefined) {
  const context = createSecureContext({ ca: ca.cert, ...pair, minVersion: "TLSv1.3" });
  return credentials.createFromSecureContext(context);
}

export const CLIENT_OPTIONS: ClientOptions = { "grpc.ssl_target_name_override": "localhost", "grpc.enable_retries": 0 };

export function clientOf(
  port: number,
  ca: Pair,
  pair?: Pair,
  options: ClientOptions = {},
  host = "127.0.0.1",
): WorkerServiceClient & Disposable {
  const server = `${isIP(host) === 6 ? `[${host}]` : host}:${port}`;
  const client = new WorkerServiceClient(server, channelOf(ca, pair), { ...CLIENT_OPTIONS, ...options });
  return Object.assign(client, { [Symbol.dispose]: () => client.close() });
}

export function healthClientOf(port: number, ca: Pair, pair: Pair): HealthClient & Disposable {
  const client = new HealthClient(`127.0.0.1:${port}`, channelOf(ca, pair), CLIENT_OPTIONS);
  return Object.assign(client, { [Symbol.dispose]: () => client.close() });
}

/** Makes a promise of a unary call: `answer((done) => client.query({ jobId }, done))`. */
export function answer<T>(call: (done: (error: ServiceError | null, value: T) => void) => unknown): Promise<T> {
  return new Promise((resolve, reject) => {
    call((error, value) => (error ? reject(error) : resolve(value)));
  });
}

/** Returns the error that a call ended with; throws when the call succeeded. */
export async function errorOf(call: Promise<unknown>): Promise<ServiceError> {
  try {
    await call;
  } catch (error) {
    if (isServiceError(error)) return error;
    throw error;
  }
  throw new Error("the call succeeded");
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && "details" in error;
}

export const JOB: Job = {
  id: "job-1",
  state: "running",
  command: "/bin/true",
  args: [],
  envNames: [],
  cwd: "/",
  user: "nobody",
  group: "nogroup",
  labels: new Map(),
  limits: new Map(),
  owner: "some writer",
  pid: 4711,
  createdAt: new Date("2026-01-02T03:04:05.678Z"),
  output: { size: 0, first: 0, dropped: 0 },
  warnings: [],
};

function none(id: string): JobError {
  return new JobError("not-found", `no job ${JSON.stringify(id)}`);
}

/** A worker in memory, which fails, rejects or streams without end on demand, as a real one does not. */
function workerOf(methods: Partial<Worker>): Worker {
  const worker: Worker = {
    host: "memory",
    figures: () => ({
      jobs: { starting: 0, running: 1, stopping: 0 },
      endedJobs: 2,
      maxJobs: 10,
      waitingStarts: 0,
      waitingWrites: 0,
      waitingLogs: 0,
      waitingArchive: 0,
    }),
    of: () => worker,
    start: () => Promise.resolve({ job: JOB, alreadyStarted: false }),
    stop: (id) => Promise.reject(none(id)),
    query: (id) => {
      if (id !== JOB.id) throw none(id);
      return JOB;
    },
    list: () => ({ jobs: [JOB] }),
    wait: async (id, signal) => {
      if (id !== JOB.id) throw none(id);
      if (signal && !signal.aborted) await once(signal, "abort");
      throw signal?.reason;
    },
    stream: (id) => {
      throw none(id);
    },
    update: (id) => Promise.reject(none(id)),
    remove: (id) => Promise.reject(none(id)),
    async *prune() {
      yield* [];
    },
    stats: (id) => {
      throw none(id);
    },
    examine: () => Promise.resolve([]),
    renew: () => () => undefined,
    close: () => Promise.resolve(),
    ...methods,
  };
  return worker;
}

/** Streams the output of a job that writes nothing, until `signal`. */
export async function* silence(signal: AbortSignal | undefined): ReturnType<Worker["stream"]> {
  if (signal && !signal.aborted) await once(signal, "abort");
  yield* [];
  return { offset: 0, job: JOB };
}

/** Returns the reason and the facts of a refusal's ErrorInfo. */
export function factsOf(error: Awaited<ReturnType<typeof errorOf>>): Record<string, string> {
  const [packed] = error.metadata.get("grpc-status-details-bin");
  const [info] = Status.decode(Buffer.from(packed ?? "")).details;
  const { reason, metadata } = ErrorInfo.decode(info?.value ?? Buffer.alloc(0));
  return { reason, ...Object.fromEntries(metadata) };
}

/** Returns the CPU time of this thread, in ms, to which the load of the machine adds nothing. */
export function cpuMs(): number {
  const { user, system } = process.threadCpuUsage();
  return (user + system) / 1000;
}

/** Opens a client's session of HTTP/2, without gRPC's manners. */
export function rawSession(port: number, ca: Pair, pair: Pair, settings: Settings = {}) {
  const session = connectHttp2(`https://localhost:${port}`, { ca: ca.cert, ...pair, settings });
  let failure: unknown;
  session.on("error", (error) => (failure = error));
  /** Throws why the connection is no more. */
  const check = (): void => {
    if (session.closed || session.destroyed) throw new Error("the connection is closed", { cause: failure });
  };
  const request = (method: string, headers: Record<string, string> = {}) =>
    session
      .request({
        ...headers,
        ":method": "POST",
        ":path": `/jobs.v1.WorkerService/${method}`,
        "content-type": "application/grpc",
        te: "trailers",
      })
      .on("error", () => undefined);
  return { request, check, [Symbol.dispose]: () => session.destroy() };
}
