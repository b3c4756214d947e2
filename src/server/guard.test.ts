import { once } from "node:events";
import { credentials, Metadata, Server, ServerCredentials, status } from "@grpc/grpc-js";
import { beforeAll, describe, expect, test } from "vitest";
import {
  StartRequest,
  StopRequest,
  StreamRequest,
  WorkerServiceClient,
  WorkerServiceService,
} from "../../proto/generated/jobs/v1/worker.ts";
import { JobError } from "../worker/model/errors.ts";
import { guardedInterceptor, type Hooks } from "./guard.ts";
import { authority, type Authority, type Pair } from "./testing/authority.ts";
import { until } from "../testing/processes.ts";
import { answer, clientOf, errorOf, JOB, logTo, running } from "./testing/server.ts";

function bang(): never {
  throw new Error("secret");
}

const INTERNAL = /^internal error; the worker's log has it under ([0-9a-f-]{36})$/;

describe("an interceptor that throws ends its call with INTERNAL and nothing else,", () => {
  test.each<[string, () => Hooks]>([
    ["when it is made", bang],
    ["in start", () => ({ start: bang })],
    ["in sendMessage", () => ({ sendMessage: bang })],
    ["in sendStatus", () => ({ sendStatus: bang })],
    ["when metadata arrive", () => ({ start: (next) => next({ onReceiveMetadata: bang }) })],
    ["when a message arrives", () => ({ start: (next) => next({ onReceiveMessage: bang }) })],
    ["when the request ends", () => ({ start: (next) => next({ onReceiveHalfClose: bang }) })],
  ])("%s", async (_, hooks) => {
    const logged: string[] = [];
    const interceptor = guardedInterceptor(
      hooks,
      logTo(({ correlationId }) => logged.push(correlationId ?? "")),
    );
    const server = new Server({ interceptors: [interceptor] });
    server.addService(
      { query: WorkerServiceService.query },
      { query: (_call: unknown, done: (error: null, value: object) => void) => done(null, { pid: 1, exitCode: 0 }) },
    );
    const port = await new Promise<number>((resolve, reject) => {
      server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, bound) =>
        error ? reject(error) : resolve(bound),
      );
    });
    const client = new WorkerServiceClient(`127.0.0.1:${port}`, credentials.createInsecure());
    for (const _again of [1, 2]) {
      const error = await errorOf(answer((done) => client.query({ jobId: "x" }, done)));
      expect(error.code).toBe(status.INTERNAL);
      expect(logged).toContain(INTERNAL.exec(error.details)?.[1]);
    }
    client.close();
    server.forceShutdown();
  });
});

describe("a handler that fails", () => {
  let trusted: Authority;
  let writer: Pair;
  beforeAll(async () => {
    trusted = await authority();
    writer = await trusted.client("writer");
  });

  test("answers INTERNAL with an id that the log has, whether it throws or rejects, and the server goes on", async () => {
    await using server = await running(trusted, {
      query: bang,
      wait: () => Promise.reject(new Error("secret")),
      stop: () => Promise.reject(new JobError("internal", "secret")),
      list: () => JSON.parse('{ "jobs": [{}] }'),
      stream: bang,
    });
    using client = clientOf(server.port, trusted.ca, writer);
    const failures = [
      await errorOf(answer((done) => client.query({ jobId: "x" }, done))),
      await errorOf(answer((done) => client.wait({ jobId: "x" }, done))),
      await errorOf(answer((done) => client.stop({ jobId: "x", grace: undefined }, done))),
      await errorOf(once(client.stream(StreamRequest.fromPartial({ jobId: "x" })), "end")),
    ];
    for (const { code, details, metadata } of failures) {
      expect(code).toBe(status.INTERNAL);
      const id = INTERNAL.exec(details)?.[1];
      expect(server.logged.map(({ correlationId }) => correlationId)).toContain(id);
      expect(JSON.stringify(metadata.toHttp2Headers())).not.toContain("secret");
    }
    const list = await errorOf(
      answer((done) => client.list({ states: [], labels: new Map(), limit: 0, pageToken: "" }, done)),
    );
    expect(list.code).toBe(status.INTERNAL);
    const start = StartRequest.fromPartial({ command: "true" });
    expect(await answer((done) => client.start(start, done))).toMatchObject({ jobId: JOB.id });
  });

  test("in the middle of a stream, leaves what came before and then the status", async () => {
    await using server = await running(trusted, {
      async *stream() {
        yield { kind: "chunk", source: "stdout", timeMs: 0, offset: 0, bytes: Buffer.from("before") };
        throw new JobError("exhausted", "too much", { facts: { limit: "1" } });
      },
    });
    using client = clientOf(server.port, trusted.ca, writer);
    const stream = client.stream(StreamRequest.fromPartial({ jobId: "x" }));
    const received: string[] = [];
    stream.on("data", ({ output }: { output: Buffer }) => received.push(output.toString()));
    const [error] = await once(stream, "error");
    expect(error).toMatchObject({ code: status.RESOURCE_EXHAUSTED, details: "too much" });
    expect(received).toEqual(["before"]);
  });

  test("is recorded with how it ended, and so are requests that are too large, malformed or late", async () => {
    await using server = await running(trusted);
    using client = clientOf(server.port, trusted.ca, writer);
    const path = WorkerServiceService.wait.path;
    // The server alone keeps this deadline: a client's own might come first, as a cancellation.
    const send = (bytes: Buffer, timeout?: string) => {
      const metadata = new Metadata();
      if (timeout !== undefined) metadata.set("grpc-timeout", timeout);
      return errorOf(answer((done) => client.makeUnaryRequest(path, same, same, bytes, metadata, done)));
    };
    expect((await send(Buffer.alloc(5 * 1024 * 1024))).code).toBe(status.RESOURCE_EXHAUSTED);
    expect((await send(Buffer.from([0x0a, 0xff]))).code).toBe(status.INVALID_ARGUMENT);
    const late = await send(Buffer.from([0x0a, 5, ...Buffer.from(JOB.id)]), "200m");
    expect(late.code).toBe(status.DEADLINE_EXCEEDED);
    await until(() => server.audit.length === 3, "all three are recorded");
    expect(server.audit).toMatchObject([
      { code: "CANCELLED" },
      { code: "INVALID_ARGUMENT" },
      { code: "DEADLINE_EXCEEDED" },
    ]);
  });

  test("tells the worker of a client that gives its start or its stop up", async () => {
    const given: AbortSignal[] = [];
    const wait = (_what: unknown, ...more: unknown[]): Promise<never> => {
      given.push(...more.filter((each) => each instanceof AbortSignal));
      return new Promise(() => {});
    };
    await using server = await running(trusted, { start: wait, stop: wait });
    using client = clientOf(server.port, trusted.ca, writer);
    const calls = [
      client.start(StartRequest.fromPartial({ command: "true" }), () => {}),
      client.stop(StopRequest.fromPartial({ jobId: JOB.id }), () => {}),
    ];
    await until(() => given.length === 2, "the worker has both");
    expect(given.map(({ aborted }) => aborted)).toEqual([false, false]);
    for (const call of calls) call.cancel();
    await until(() => given.every(({ aborted }) => aborted), "the worker is told");
  });
});

function same(bytes: Buffer): Buffer {
  return bytes;
}
