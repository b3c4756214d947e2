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
import { brief, type Job, type Worker } from "../worker/index.ts";
import type { CallContext, Handlers } from "./guard.ts";
import { listJobs } from "./list.ts";
import type { ServerMeter } from "./meter.ts";
import { type StreamMessage, streamOutput, streamStats } from "./stream.ts";
import { toResources } from "./translate-resources.ts";
import { fromFinding, fromJob, toJobSpec, toStop } from "./translate.ts";

/** Long answers are serialised where they are made, so that authorise.ts knows their length and bounds those that are unread. */
type Service = Omit<WorkerServiceServer, "stream" | "list" | "query" | "wait"> & {
  stream: handleServerStreamingCall<StreamRequest, StreamMessage>;
  list: handleUnaryCall<ListRequest, Buffer>;
  query: handleUnaryCall<QueryRequest, Buffer>;
  wait: handleUnaryCall<WaitRequest, Buffer>;
};

/** Serves a worker as WorkerService: translates requests and answers, and decides nothing. */
export function workerService(worker: Worker, { unary, streaming }: Handlers, meter: ServerMeter): Service {
  return {
    start: unary(async (request, { principal, signal }) => {
      const { job, alreadyStarted } = await worker.start(toJobSpec(request, principal.name), signal);
      return { jobId: job.id, pid: job.pid, alreadyStarted };
    }),
    stop: unary(async (request, { principal, signal }) => {
      const how = { ...toStop(request), by: principal.name };
      const { job, killed } = await worker.stop(request.jobId, how, signal);
      return { job: fromJob(brief(job)), killed };
    }),
    query: unary(({ jobId }, context) => {
      const job = worker.query(jobId);
      return isLong(job) ? inTurns(job, context) : queryResponse(job, fromJob(job));
    }),
    list: unary((request, context) => listJobs(worker, request, context)),
    wait: unary(async ({ jobId }, { signal, turn }) => {
      const job = await worker.wait(jobId, signal);
      // Thousands may wait for one job. Its end must not take other clients' turns, nor much memory.
      return turn(() => onWire(WaitResponse.encode({ job: fromJob(brief(job)) }).finish()));
    }, "lasts"),
    update: unary(async ({ jobId, resources }) => {
      const job = await worker.update(jobId, resources ? toResources(resources) : {});
      return { job: fromJob(brief(job)) };
    }),
    stats: streaming((call, context) => streamStats(worker, call, context)),
    examine: unary(async () => {
      const findings = await worker.examine();
      return { findings: findings.map(fromFinding), time: new Date() };
    }),
    stream: streaming((call, context) => streamOutput(worker, call, context, meter)),
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
