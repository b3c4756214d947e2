import { Metadata, status } from "@grpc/grpc-js";
import { trace } from "@opentelemetry/api";
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } from "@opentelemetry/sdk-trace-base";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type StartResponse, StartRequest } from "../../proto/generated/jobs/v1/worker.ts";
import { JobError } from "../worker/model/errors.ts";
import type { Ended, JobSpec } from "../worker/model/job.ts";
import { type Authority, authority, type Pair } from "./testing/authority.ts";
import { until } from "../testing/processes.ts";
import { answer, clientOf, errorOf, JOB, type Running, running } from "./testing/server.ts";
import { NO_TRACING, openTracing, type Tracing } from "./tracing.ts";

const [TRACE, SPAN] = ["4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"];
const PARENT = `00-${TRACE}-${SPAN}-01`;

let certificates: Authority;
let writer: Pair;
let reader: Pair;
const started: JobSpec[] = [];
beforeAll(async () => {
  certificates = await authority();
  [writer, reader] = [await certificates.client("writer"), await certificates.client("reader")];
});

function serving(tracing?: Tracing): Promise<Running> {
  return running(
    certificates,
    {
      start(spec) {
        if (spec.command === "refused") return Promise.reject(new JobError("invalid", "no such command"));
        started.push(spec);
        return Promise.resolve({ job: { ...JOB, id: spec.command }, alreadyStarted: spec.requestId !== undefined });
      },
    },
    { tracing },
  );
}

/** Starts a job with these values of the metadata, and returns the job's TRACEPARENT. */
async function startWith(
  { port }: Running,
  values: readonly string[],
  request: Parameters<typeof StartRequest.fromPartial>[0] = {},
  pair = writer,
): Promise<string | undefined> {
  using client = clientOf(port, certificates.ca, pair);
  const metadata = new Metadata();
  for (const value of values) metadata.add("traceparent", value);
  await answer<StartResponse>((done) =>
    client.start(StartRequest.fromPartial({ command: "true", ...request }), metadata, done),
  );
  return started.at(-1)?.env?.get("TRACEPARENT");
}

describe("without an SDK, a traceparent", () => {
  let server: Running;
  beforeAll(async () => {
    expect(await openTracing("1")).toBe(NO_TRACING);
    server = await serving();
  });
  afterAll(() => server[Symbol.asyncDispose]());

  it("is the job's TRACEPARENT and in the call's records, unless the start gives a TRACEPARENT of its own", async () => {
    expect(await startWith(server, [PARENT])).toBe(PARENT);
    await until(() => server.audit.filter(({ stage }) => stage === "end").length === 1, "the end is recorded");
    expect(server.audit.map(({ stage, traceparent }) => [stage, traceparent])).toEqual([
      ["begin", PARENT],
      ["end", PARENT],
    ]);
    expect(await startWith(server, [PARENT], { env: new Map([["TRACEPARENT", "own"]]) })).toBe("own");
    const bytes = [Buffer.from("TRACEPARENT=bytes")];
    expect(await startWith(server, [PARENT], { environBytes: bytes })).toBe("bytes");
  });

  it("is in the record of a call that was refused, too", async () => {
    await errorOf(startWith(server, [PARENT], {}, reader));
    await until(() => server.audit.some(({ decision }) => decision === "denied"), "the refusal is recorded");
    expect(server.audit.findLast(({ decision }) => decision === "denied")).toMatchObject({ traceparent: PARENT });
  });

  it.each([
    ["is not there", []],
    ["is not valid", [`00-${"0".repeat(32)}-${SPAN}-01`]],
    ["is long", [`01-${TRACE}-${SPAN}-01-${"x".repeat(4000)}`]],
    ["is there twice", [PARENT, PARENT]],
    ["is two in one", [`${PARENT},${PARENT}`]],
  ])("that %s leaves no variable and nothing in the records", async (_, values) => {
    const seen = server.audit.length;
    expect(await startWith(server, values)).toBeUndefined();
    await until(() => server.audit.length >= seen + 2, "the call is recorded");
    expect(JSON.stringify(server.audit.slice(seen))).not.toContain("traceparent");
  });
});

describe("with an SDK", () => {
  const exporter = new InMemorySpanExporter();
  let server: Running;
  let tracing: Tracing;
  beforeAll(async () => {
    trace.setGlobalTracerProvider(new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] }));
    tracing = await openTracing("1");
    server = await serving(tracing);
  });
  afterAll(async () => {
    await server[Symbol.asyncDispose]();
    trace.disable();
  });

  /** Waits for the span of a name that was told last, and forgets all. */
  async function span(name: string) {
    await until(() => exporter.getFinishedSpans().some((each) => each.name === name), `the span ${name} is told`);
    const found = exporter.getFinishedSpans().findLast((each) => each.name === name);
    exporter.reset();
    return found;
  }

  it("a call is a span of the client's trace, and a job is a span of the call, which its processes go on from", async () => {
    const variable = await startWith(server, [PARENT], { command: "long" });
    const call = await span("jobs.v1.WorkerService/Start");
    expect(call?.spanContext().traceId).toBe(TRACE);
    expect(call?.parentSpanContext?.spanId).toBe(SPAN);
    expect(call?.attributes).toEqual({
      "rpc.system": "grpc",
      "rpc.service": "jobs.v1.WorkerService",
      "rpc.method": "Start",
      "rpc.grpc.status_code": 0,
    });
    const ended: Ended = { how: { kind: "exited", code: 3 }, exitCode: 3, signal: 0, killed: 0 };
    tracing.ended({ ...JOB, id: "long", state: "ended", ended, endedAt: new Date() });
    const job = await span("job");
    expect(job?.parentSpanContext?.spanId).toBe(call?.spanContext().spanId);
    expect(variable).toBe(`00-${TRACE}-${job?.spanContext().spanId}-01`);
    expect(job?.attributes).toEqual({
      "jobs.id": "long",
      "process.pid": JOB.pid,
      "jobs.end": "exited",
      "process.exit.code": 3,
    });
  });

  it("a call without a traceparent begins a trace, which its record names", async () => {
    await startWith(server, []);
    const call = await span("jobs.v1.WorkerService/Start");
    expect(call?.parentSpanContext).toBeUndefined();
    const own = `00-${call?.spanContext().traceId}-${call?.spanContext().spanId}-01`;
    await until(() => server.audit.some(({ traceparent }) => traceparent === own), "the record names the trace");
  });

  it("a start that was refused, or that started nothing, has no job's span, and a client's fault is no error of the span", async () => {
    await errorOf(startWith(server, [PARENT], { command: "refused" }));
    const call = await span("jobs.v1.WorkerService/Start");
    expect(call?.attributes["rpc.grpc.status_code"]).toBe(status.INVALID_ARGUMENT);
    expect(call?.status.code).toBe(0);
    await startWith(server, [PARENT], { command: "again", requestId: "again" });
    tracing.ended({ ...JOB, id: "again", state: "ended" });
    await span("jobs.v1.WorkerService/Start");
    expect(exporter.getFinishedSpans()).toEqual([]);
  });
});
