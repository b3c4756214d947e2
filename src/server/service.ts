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
import { type StreamMessage, streamOutput, streamStats } from "./stream.ts";
import { toResources } from "./translate-resources.ts";
import { fromFinding, fromJob, toJobSpec, toStop } from "./translate.ts";

/** What may be long is serialised where it is made, so that its length is known: interceptors.ts bounds what is unread. */
type Service = Omit<WorkerServiceServer, "stream" | "list" | "query" | "wait"> & {
  stream: handleServerStreamingCall<StreamRequest, StreamMessage>;
  list: handleUnaryCall<ListRequest, Buffer>;
  query: handleUnaryCall<QueryRequest, Buffer>;
  wait: handleUnaryCall<WaitRequest, Buffer>;
};

/** WorkerService on a worker: translates requests and answers, and decides nothing. */
export function workerService(worker: Worker, { unary, streaming }: Handlers): Service {
  return {
    start: unary(async (request, { principal }) => {
      const { job, alreadyStarted } = await worker.start(toJobSpec(request, principal.name));
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
      // Thousands may wait for one job: its end is not to take the turns of everybody else, nor much memory.
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
    stream: streaming((call, context) => streamOutput(worker, call, context)),
  };
}

/** So many texts take milliseconds to translate, and as many again to serialise. */
const MANY_TEXTS = 10_000;

function isLong({ args, envNames }: Job): boolean {
  return args.length + envNames.length > MANY_TEXTS;
}

function queryResponse({ pid, state, ended }: Job, job: ProtoJob): Buffer {
  const response = { pid, exitCode: ended?.exitCode ?? -1, exited: state === "ended", job };
  return onWire(QueryResponse.encode(response).finish());
}

/** A QueryResponse, each step of its making in a turn of its own. */
async function inTurns(job: Job, { turn }: CallContext): Promise<Buffer> {
  // The first step was to find it.
  await turn(() => {});
  const translated = await turn(() => fromJob(job));
  return turn(() => queryResponse(job, translated));
}

function onWire({ buffer, byteOffset, byteLength }: Uint8Array): Buffer {
  return Buffer.from(buffer, byteOffset, byteLength);
}
