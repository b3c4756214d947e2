import type { handleServerStreamingCall } from "@grpc/grpc-js";
import type { StreamRequest, WorkerServiceServer } from "../../proto/generated/jobs/v1/worker.ts";
import type { Worker } from "../worker/worker.ts";
import type { Handlers } from "./guard.ts";
import { streamOutput, type StreamMessage } from "./stream.ts";
import { fromFinding, fromJob, toJobSpec, toListFilter, toStop } from "./translate.ts";

type Service = Pick<WorkerServiceServer, "start" | "stop" | "query" | "list" | "wait" | "examine"> & {
  stream: handleServerStreamingCall<StreamRequest, StreamMessage>;
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
      return { job: fromJob(job), killed };
    }),
    query: unary(({ jobId }) => {
      const job = worker.query(jobId);
      return { pid: job.pid, exitCode: job.ended?.exitCode ?? -1, exited: job.state === "ended", job: fromJob(job) };
    }),
    list: unary((request) => {
      const { jobs, nextPageToken = "" } = worker.list(toListFilter(request));
      return { jobs: jobs.map(fromJob), nextPageToken };
    }),
    wait: unary(async ({ jobId }, { signal }) => ({ job: fromJob(await worker.wait(jobId, signal)) }), "lasts"),
    examine: unary(async () => {
      const findings = await worker.examine();
      return { findings: findings.map(fromFinding), time: new Date() };
    }),
    stream: streaming((call, context) => streamOutput(worker, call, context)),
  };
}
