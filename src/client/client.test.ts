import { once } from "node:events";
import { createSecureServer } from "node:http2";
import { createServer } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { Metadata, Server, ServerCredentials, type ServerWritableStream, status } from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { BadRequest, ErrorInfo, Status } from "../../proto/generated/google/rpc/details.ts";
import {
  Job,
  QueryResponse,
  type StreamRequest,
  StatsResponse,
  StreamResponse,
  type WorkerServiceServer,
  WorkerServiceService,
} from "../../proto/generated/jobs/v1/worker.ts";
import { ClientError } from "./errors.ts";
import { type Client, connect } from "./index.ts";
import { resuming, retrying } from "./resume.ts";
import { formatTarget, parseTarget } from "./target.ts";
import { type TestAuthority, testAuthority } from "./testing/authority.ts";

type Streaming = ServerWritableStream<StreamRequest, StreamResponse>;

let authority: TestAuthority;
let credentials: { ca: string; cert: string; key: string };
let server: Server;
let port: number;
/** What the server does with the next Stream. */
let onStream: (call: Streaming) => void;
/** And with the next Stats. */
let onStats: WorkerServiceServer["stats"] = (call) => call.end();

async function listen(hosts: string[], address: string): Promise<{ server: Server; port: number }> {
  const { cert, key } = await authority.issue("worker", { hosts });
  const made = new Server();
  const handlers: WorkerServiceServer = {
    start: (_call, done) => done({ code: status.INVALID_ARGUMENT, details: "cwd: no", metadata: details() }),
    stop: (call) => call.on("cancelled", () => cancelled.resolve("stop")),
    query: (call, done) => done(null, QueryResponse.create({ job: Job.create({ id: call.request.jobId }) })),
    stream: (call) => onStream(call),
    list: (_call, done) => done({ code: status.UNAVAILABLE, details: "later" }),
    wait: (_call, done) => done(null, { job: undefined }),
    update: (_call, done) => done(null, { job: undefined }),
    remove: (_call, done) => done(null, { jobId: "" }),
    prune: (call) => call.end(),
    stats: (call) => onStats(call),
    examine: (_call, done) => done(null, { findings: [], time: undefined }),
  };
  made.addService(WorkerServiceService, handlers);
  const pair = [{ private_key: Buffer.from(key), cert_chain: Buffer.from(cert) }];
  const tls = ServerCredentials.createSsl(Buffer.from(credentials.ca), pair, true);
  return new Promise((resolve, reject) =>
    made.bindAsync(address, tls, (error, bound) => (error ? reject(error) : resolve({ server: made, port: bound }))),
  );
}

let cancelled = Promise.withResolvers<string>();

function details(): Metadata {
  const info = { reason: "INVALID", domain: "jobs", metadata: new Map([["stage", "cwd"]]) };
  const violation = { fieldViolations: [{ field: "cwd", description: "no" }] };
  const packed = [
    { typeUrl: "type.googleapis.com/google.rpc.ErrorInfo", value: Buffer.from(ErrorInfo.encode(info).finish()) },
    { typeUrl: "type.googleapis.com/google.rpc.BadRequest", value: Buffer.from(BadRequest.encode(violation).finish()) },
    { typeUrl: "type.googleapis.com/google.rpc.Unknown", value: Buffer.from([255]) },
  ];
  const metadata = new Metadata();
  const bytes = Status.encode({ code: status.INVALID_ARGUMENT, message: "cwd: no", details: packed }).finish();
  metadata.set("grpc-status-details-bin", Buffer.from(bytes));
  return metadata;
}

function client(host = "127.0.0.1", at = port): Client {
  return connect({ server: `${host}:${at}`, ...credentials, connectTimeoutMs: 5_000 });
}

function chunk(offset: number, output: Buffer): StreamResponse {
  return StreamResponse.create({ offset: BigInt(offset), output });
}

beforeAll(async () => {
  authority = await testAuthority();
  credentials = { ca: authority.ca, ...(await authority.issue("writer")) };
  ({ server, port } = await listen(["localhost", "127.0.0.1", "::1"], "[::]:0"));
});
afterAll(() => server.forceShutdown());

describe("a connection", () => {
  it.each(["127.0.0.1", "[::1]", "localhost", "[::ffff:127.0.0.1]", "[::FFFF:7f00:1]"])(
    "is made to %s",
    async (host) => {
      using to = client(host);
      expect((await to.query("x")).job?.id).toBe("x");
    },
  );

  it("is refused where the certificate is not made out to the address or name that was called", async () => {
    const other = await listen(["other.example", "192.0.2.1"], "127.0.0.1:0");
    try {
      for (const host of ["127.0.0.1", "localhost"]) {
        using to = client(host, other.port);
        await expect(to.query("x")).rejects.toMatchObject({ code: "UNAVAILABLE" });
      }
    } finally {
      other.server.forceShutdown();
    }
  });

  it("is not made over TLS 1.2", async () => {
    const pair = await authority.issue("worker");
    const old = createSecureServer({ ...pair, maxVersion: "TLSv1.2" }).listen(0, "127.0.0.1");
    await once(old, "listening");
    const address = old.address();
    using to = client("127.0.0.1", typeof address === "object" ? address?.port : 0);
    await expect(to.query("x")).rejects.toMatchObject({ code: "UNAVAILABLE" });
    old.close();
  });

  it("is given up when nobody answers in time", async () => {
    const silent = createServer().listen(0, "127.0.0.1");
    await once(silent, "listening");
    const address = silent.address();
    const to = `127.0.0.1:${typeof address === "object" ? address?.port : 0}`;
    using slow = connect({ server: to, ...credentials, connectTimeoutMs: 100 });
    const unreachable = { code: "UNAVAILABLE", message: `no connection to ${to} within 0.1 s` };
    await expect(slow.query("x")).rejects.toMatchObject(unreachable);
    await expect(slow.stream({ jobId: "x" }).next()).rejects.toMatchObject(unreachable);
    silent.close();
  });

  it("needs a key that belongs to the certificate", async () => {
    const { key } = await (await testAuthority()).issue("writer");
    expect(() => connect({ server: "localhost:1", ...credentials, key })).toThrow(ClientError);
    expect(() => connect({ server: "localhost:1", ...credentials, key })).toThrow(/does not belong to the certificate/);
  });

  it.each(["localhost", ":1", "::1:7443", "[localhost]:1", "[::1]", "a b:1", "x:70000", "x:1:2", "http://x:1"])(
    "to %j is refused, saying what would be right",
    (address) => {
      expect(() => parseTarget(address)).toThrow(/^server: ".*" is not an address; give HOST:PORT/);
    },
  );

  it.each(["localhost:0", "192.0.2.1:7443", "[2001:db8::1]:65535"])("reads and writes %s", (address) => {
    expect(formatTarget(parseTarget(address))).toBe(address);
  });
});

describe("a call", () => {
  it("fails with code, message, reason, field and facts", async () => {
    using to = client();
    await expect(to.start({ command: "x" })).rejects.toMatchObject({
      name: "ClientError",
      code: "INVALID_ARGUMENT",
      message: "cwd: no",
      reason: "INVALID",
      field: "cwd",
      facts: { stage: "cwd" },
    });
  });

  it("is cancelled by its signal, also at the server, and not begun when that is aborted", async () => {
    using to = client();
    cancelled = Promise.withResolvers();
    const giveUp = new AbortController();
    const stopping = to.stop({ jobId: "x" }, { signal: giveUp.signal });
    await to.query("x");
    giveUp.abort();
    await expect(stopping).rejects.toMatchObject({ code: "CANCELLED" });
    expect(await cancelled.promise).toBe("stop");
    await expect(to.query("x", { signal: giveUp.signal })).rejects.toMatchObject({ code: "CANCELLED" });
    await expect(to.stream({ jobId: "x" }, { signal: giveUp.signal }).next()).rejects.toMatchObject({
      code: "CANCELLED",
    });
  });

  it("ends at its time limit", async () => {
    using to = client();
    await expect(to.stop({ jobId: "x" }, { timeoutMs: 50 })).rejects.toMatchObject({ code: "DEADLINE_EXCEEDED" });
  });
});

describe("a stream", () => {
  it("gives every message, then ends", async () => {
    onStream = (call) => {
      for (let index = 0; index < 100; index++) call.write(chunk(index, Buffer.of(index)));
      call.end();
    };
    using to = client();
    const messages = await Array.fromAsync(to.stream({ jobId: "x" }));
    expect(messages.map(({ output }) => output[0])).toEqual(Array.from({ length: 100 }, (_, index) => index));
  });

  it("gives what came before an error, then throws it", async () => {
    onStream = (call) => {
      call.write(chunk(0, Buffer.from("a")));
      call.emit("error", { code: status.NOT_FOUND, details: "gone" });
    };
    using to = client();
    const stream = to.stream({ jobId: "x" });
    expect((await stream.next()).value).toMatchObject({ output: Buffer.from("a") });
    await expect(stream.next()).rejects.toMatchObject({ code: "NOT_FOUND", message: "gone" });
  });

  it("is cancelled at the server when its consumer leaves, or its signal says so", async () => {
    const ended: Promise<unknown>[] = [];
    onStream = (call) => {
      ended.push(once(call, "cancelled"));
      call.write(chunk(0, Buffer.from("a")));
    };
    using to = client();
    for await (const _ of to.stream({ jobId: "x" })) break;
    const giveUp = new AbortController();
    const stream = to.stream({ jobId: "x" }, { signal: giveUp.signal });
    await stream.next();
    giveUp.abort();
    await expect(stream.next()).rejects.toMatchObject({ code: "CANCELLED" });
    await Promise.all(ended);
    expect(ended).toHaveLength(2);
  });

  it("holds the server back while nobody reads", async () => {
    const piece = Buffer.alloc(256 * 1024);
    let written = 0;
    onStream = (call) => {
      const write = (): void => {
        while (!call.cancelled && call.write(chunk(0, piece))) written++;
        call.once("drain", write);
      };
      write();
    };
    using to = client();
    const stream = to.stream({ jobId: "x" });
    await stream.next();
    // As many round trips on the same connection as would carry gigabytes if nothing held them back.
    for (let index = 0; index < 500; index++) await to.query("x");
    expect(written * piece.length).toBeLessThan(64 * 1024 * 1024);
    await stream.return();
  });
});

describe("samples of a job's usage", () => {
  const sample = (count: number): StatsResponse => StatsResponse.create({ usage: { processes: BigInt(count) } });

  it("are skipped by who is slow, but for the newest, and the last comes always", async () => {
    let end = (): void => {};
    onStats = (call) => {
      for (let i = 0; i < 1000; i++) call.write(sample(i));
      end = () => {
        call.write(StatsResponse.create({ end: Job.create({ id: "x" }) }));
        call.end();
      };
    };
    using to = client();
    const samples = to.stats({ jobId: "x" });
    const seen: bigint[] = [];
    while (seen.at(-1) !== 999n) {
      const { value } = await samples.next();
      seen.push(value?.usage?.processes ?? -1n);
      // As a terminal that is held up.
      for (let i = 0; i < 20; i++) await to.query("x");
    }
    expect(seen.length).toBeLessThan(500);
    end();
    expect((await samples.next()).value).toMatchObject({ end: { id: "x" } });
    expect(await samples.next()).toEqual({ done: true, value: undefined });
  });

  it("end with the loop that reads them, with their signal and with their error", async () => {
    const gone = Promise.withResolvers<void>();
    onStats = (call) => {
      call.on("cancelled", () => gone.resolve());
      call.write(sample(1));
    };
    using to = client();
    for await (const { usage } of to.stats({ jobId: "x" })) {
      expect(usage?.processes).toBe(1n);
      break;
    }
    await gone.promise;
    const giveUp = new AbortController();
    const samples = to.stats({ jobId: "x" }, { signal: giveUp.signal });
    await samples.next();
    giveUp.abort();
    await expect(samples.next()).rejects.toMatchObject({ code: "CANCELLED" });
    onStats = (call) => call.emit("error", { code: status.NOT_FOUND, details: "no job" });
    await expect(to.stats({ jobId: "x" }).next()).rejects.toMatchObject({ code: "NOT_FOUND", message: "no job" });
  });
});

describe("an outage", () => {
  it("is bridged by a stream that goes on where it broke, gaps counted", async () => {
    const asked: StreamRequest["position"][] = [];
    onStream = (call) => {
      asked.push(call.request.position);
      if (asked.length === 1) {
        call.write(chunk(10, Buffer.from("abc")));
        call.write(StreamResponse.create({ offset: 13n, gap: 7n }));
      }
      if (asked.length < 4) {
        call.emit("error", { code: status.UNAVAILABLE, details: "shutting down" });
        return;
      }
      call.write(chunk(20, Buffer.from("def")));
      call.write(StreamResponse.create({ offset: 23n, end: Job.create({ id: "x" }) }));
      call.end();
    };
    using to = client();
    const told: string[] = [];
    const messages = resuming(
      to,
      { jobId: "x", position: { $case: "tailBytes", value: 13n } },
      {
        limitMs: 10_000,
        onRetry: ({ message }, attempt) => told.push(`${message} ${attempt}`),
        onResume: (offset) => told.push(`on at ${offset}`),
      },
    );
    const output = (await Array.fromAsync(messages)).map((message) => message.output.toString()).join("");
    expect(output).toBe("abcdef");
    const resumed = { $case: "offset", value: 20n };
    expect(asked).toEqual([{ $case: "tailBytes", value: 13n }, resumed, resumed, resumed]);
    expect(told).toEqual(["shutting down 1", "shutting down 2", "shutting down 3", "on at 20"]);
  });

  it("is told of once, though a call fails for want of a connection that has come meanwhile", async () => {
    let other = await listen(["127.0.0.1"], "127.0.0.1:0");
    using to = client("127.0.0.1", other.port);
    const told: string[] = [];
    let attempts = 0;
    const call = async (): Promise<string> => {
      attempts++;
      if (attempts === 1) other.server.forceShutdown();
      if (attempts === 2) other = await listen(["127.0.0.1"], `127.0.0.1:${other.port}`);
      if (attempts === 2) while (!(await to.query("x").catch(() => undefined))) await delay(10);
      if (attempts < 3) throw new ClientError("UNAVAILABLE", "refused");
      return "answer";
    };
    try {
      await to.query("x");
      const onRetry = ({ message }: ClientError): unknown => told.push(message);
      expect(await retrying(to, call, { limitMs: 20_000, onRetry, onResume: () => told.push("on") })).toBe("answer");
      expect(told).toEqual(["refused", "on"]);
      attempts = 0;
      expect(await retrying(to, call, { limitMs: 20_000, onResume: () => told.push("on") })).toBe("answer");
      expect(told).toEqual(["refused", "on", "on"]);
    } finally {
      other.server.forceShutdown();
    }
  });

  it("ends in its error when it lasts too long, at once when it is no outage, and with the signal", async () => {
    using to = client();
    let attempts = 0;
    const onRetry = (): number => attempts++;
    await expect(retrying(to, () => to.list(), { limitMs: 500, onRetry })).rejects.toMatchObject({
      code: "UNAVAILABLE",
      message: "later",
    });
    expect(attempts).toBe(2);
    await expect(retrying(to, () => to.start({}), { limitMs: 500, onRetry })).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
    });
    expect(attempts).toBe(2);
    const giveUp = new AbortController();
    const waiting = retrying(to, () => to.list(), {
      limitMs: 60_000,
      signal: giveUp.signal,
      onRetry: () => giveUp.abort(),
    });
    await expect(waiting).rejects.toMatchObject({ code: "UNAVAILABLE" });
  });
});
