import type { handleServerStreamingCall, handleUnaryCall } from "@grpc/grpc-js";
import {
  type Job as ProtoJob,
  type ListRequest,
  type QueryRequest,
  QueryResponse,
  type StreamRequest,
  type WaitRequest,
  WaitResponse,
  type WorkerServiceServer,
} from "../../proto/generated/jobs/v1/worker.ts";
import { brief, type Job } from "../worker/index.ts";
import type { CertificateFinding } from "./expiry.ts";
import type { CallContext, Handlers } from "./guard.ts";
import { listJobs } from "./list.ts";
import type { ServerMeter } from "./meter.ts";
import type { JobsOf } from "./owners.ts";
import { type StreamMessage, streamOutput, streamPruned, streamStats } from "./stream.ts";
import type { Tracing } from "./tracing.ts";
import { toResources } from "./translate-resources.ts";
import { fromFinding, fromJob, toJobSpec, toStop } from "./translate.ts";

/** Long answers are serialised where they are made, so that authorise.ts knows their length and bounds those that are unread. */
type Service = Omit<WorkerServiceServer, "stream" | "list" | "query" | "wait"> & {
  stream: handleServerStreamingCall<StreamRequest, StreamMessage>;
  list: handleUnaryCall<ListRequest, Buffer>;
  query: handleUnaryCall<QueryRequest, Buffer>;
  wait: handleUnaryCall<WaitRequest, Buffer>;
};

/** What a service takes note of calls by, and what it tells of the server itself. */
interface Surroundings {
  readonly meter: ServerMeter;
  readonly tracing: Tracing;
  readonly own: () => readonly CertificateFinding[];
}

/** Serves each client its jobs as WorkerService: translates requests and answers, and decides nothing. */
export function workerService(
  jobsOf: JobsOf,
  { unary, streaming }: Handlers,
  { meter, tracing, own }: Surroundings,
): Service {
  return {
    start: unary(async (request, { principal, signal, parent }) => {
      const span = tracing.job(parent);
      const spec = toJobSpec(request, principal.subject, span.traceparent);
      const { job, alreadyStarted } = await jobsOf(principal).start(spec, signal);
      if (!alreadyStarted) span.started(job);
      return { jobId: job.id, pid: job.pid, alreadyStarted };
    }),
    stop: unary(async (request, { principal, signal }) => {
      const how = { ...toStop(request), by: principal.subject };
      const { job, killed } = await jobsOf(principal).stop(request.jobId, how, signal);
      return { job: fromJob(brief(job)), killed };
    }),
    query: unary(({ jobId }, context) => {
      const job = jobsOf(context.principal).query(jobId);
      return isLong(job) ? inTurns(job, context) : queryResponse(job, fromJob(job));
    }),
    list: unary((request, context) => listJobs(jobsOf(context.principal), request, context)),
    wait: unary(async ({ jobId }, { principal, signal, turn }) => {
      const job = await jobsOf(principal).wait(jobId, signal);
      // Thousands may wait for one job. Its end must not take other clients' turns, nor much memory.
      return turn(() => onWire(WaitResponse.encode({ job: fromJob(brief(job)) }).finish()));
    }, "lasts"),
    update: unary(async ({ jobId, resources }, { principal }) => {
      const job = await jobsOf(principal).update(jobId, resources ? toResources(resources) : {});
      return { job: fromJob(brief(job)) };
    }),
    remove: unary(async ({ jobId, archived }, { principal }) => {
      await jobsOf(principal).remove(jobId, { archived });
      return { jobId };
    }),
    prune: streaming((call, context) => streamPruned(jobsOf(context.principal), call, context)),
    stats: streaming((call, context) => streamStats(jobsOf(context.principal), call, context)),
    examine: unary(async (_request, { principal }) => {
      const findings = [...(await jobsOf(principal).examine()), ...own()];
      return { findings: findings.map(fromFinding), time: new Date() };
    }),
    stream: streaming((call, context) => streamOutput(jobsOf(context.principal), call, context, meter)),
  };
}

/** A job with more texts takes milliseconds to translate, and milliseconds to serialise. */
const MANY_TEXTS = 10_000;

function isLong({ args, envNames }: Job): boolean {
  return args.length + envNames.length > MANY_TEXTS;
}

function queryResponse({ pid, state, ended }: Job, job: ProtoJob): Buffer {
  const response = { pid, exitCode: ended?.exitCode ?? -1, exited: state === "ended", job };
  return onWire(QueryResponse.encode(response).finish());
}

/** Makes a QueryResponse in steps, each in a turn of its own. */
async function inTurns(job: Job, { turn }: CallContext): Promise<Buffer> {
  // The search for the job has taken the turn that the call is in.
  await turn(() => {});
  const translated = await turn(() => fromJob(job));
  return turn(() => queryResponse(job, translated));
}

/** Returns the same bytes, as grpc-js takes a message that is serialised already. */
export function onWire({ buffer, byteOffset, byteLength }: Uint8Array): Buffer {
  return Buffer.from(buffer, byteOffset, byteLength);
}
