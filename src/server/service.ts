import type { handleServerStreamingCall } from "@grpc/grpc-js";
import type { StreamRequest, WorkerServiceServer } from "../../proto/generated/jobs/v1/worker.ts";
import type { Worker } from "../worker/worker.ts";
import type { Handlers } from "./guard.ts";
import { streamOutput, streamStats, type StreamMessage } from "./stream.ts";
import { toResources } from "./translate-resources.ts";
import { fromFinding, fromJob, toJobSpec, toListFilter, toStop } from "./translate.ts";

type Service = Omit<WorkerServiceServer, "stream"> & {
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
    update: unary(async ({ jobId, resources }) => {
      const job = await worker.update(jobId, resources ? toResources(resources) : {});
      return { job: fromJob(job) };
    }),
    stats: streaming((call, context) => streamStats(worker, call, context)),
    examine: unary(async () => {
      const findings = await worker.examine();
      return { findings: findings.map(fromFinding), time: new Date() };
    }),
    stream: streaming((call, context) => streamOutput(worker, call, context)),
  };
}
