import { once } from "node:events";
import { connect as connectTcp, type Socket } from "node:net";
import { connect as connectTls, type ConnectionOptions } from "node:tls";
import { status } from "@grpc/grpc-js";
import { beforeAll, describe, expect, test } from "vitest";
import { StartRequest, UpdateRequest, StreamRequest } from "../../proto/generated/jobs/v1/worker.ts";
import { authority, derString, type Authority, type IssueOptions, type Pair } from "./testing/authority.ts";
import { until } from "../testing/processes.ts";
import { answer, clientOf, errorOf, JOB, running, silence } from "./testing/server.ts";

let trusted: Authority;
let stranger: Authority;
let reader: Pair;
let writer: Pair;
beforeAll(async () => {
  [trusted, stranger] = await Promise.all([authority(), authority()]);
  [reader, writer] = await Promise.all([trusted.client("reader"), trusted.client("writer")]);
});

const START = StartRequest.fromPartial({ command: "/bin/true", args: ["secret"], env: new Map([["TOKEN", "secret"]]) });

async function query(port: number, pair?: Pair): Promise<void> {
  using client = clientOf(port, trusted.ca, pair);
  await answer((done) => client.query({ jobId: JOB.id }, done));
}

function raw(bytes: Buffer): Buffer {
  return bytes;
}

/** Connects by TLS alone, and returns the error that ended the connection, or "closed". */
function outcome(port: number, options: ConnectionOptions): Promise<string> {
  const socket = connectTls({ host: "127.0.0.1", port, ca: trusted.ca.cert, servername: "localhost", ...options });
  return new Promise((resolve) => {
    socket.on("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
    socket.on("close", () => resolve("closed"));
    socket.resume();
  });
}

describe("a connection is refused, and the audit log says why,", () => {
  const DAY_MS = 24 * 3600 * 1000;
  const role = { roles: [derString("writer")] };
  test.each<[string, () => Promise<Pair> | undefined, string]>([
    ["without a certificate", () => undefined, "NO_CERTIFICATE"],
    [
      "when another CA of the same name signed",
      () => stranger.client("writer"),
      "UNABLE_TO_VERIFY_LEAF_SIGNATURE|CERT_SIGNATURE_FAILURE",
    ],
    [
      "with an expired one",
      () => trusted.issue({ ...role, notAfter: new Date(Date.now() - 1000) }),
      "CERT_HAS_EXPIRED",
    ],
    [
      "with one of tomorrow",
      () => trusted.issue({ ...role, notBefore: new Date(Date.now() + DAY_MS / 2) }),
      "CERT_NOT_YET_VALID",
    ],
    ["with a server's", () => trusted.issue({ ...role, usages: ["serverAuth"] }), "INVALID_PURPOSE"],
  ])("%s", async (_, issue, reason) => {
    await using server = await running(trusted);
    const error = await errorOf(query(server.port, await issue()));
    expect(error.code).toBe(status.UNAVAILABLE);
    expect(server.audit).toEqual([
      expect.objectContaining({ event: "connection", decision: "denied", reason: expect.stringMatching(reason) }),
    ]);
    expect(server.audit[0]).not.toHaveProperty("principal");
  });

  test("with TLS 1.2", async () => {
    await using server = await running(trusted);
    expect(await outcome(server.port, { ...writer, maxVersion: "TLSv1.2" })).toMatch(/PROTOCOL_VERSION/);
    expect(server.audit).toMatchObject([
      { event: "connection", decision: "denied", reason: "ERR_SSL_UNSUPPORTED_PROTOCOL" },
    ]);
  });

  test("with another protocol than HTTP/2", async () => {
    await using server = await running(trusted);
    expect(await outcome(server.port, { ...writer, ALPNProtocols: ["http/1.1"] })).toMatch(/NO_APPLICATION_PROTOCOL/);
    expect(server.audit).toMatchObject([{ event: "connection", decision: "denied" }]);
  });

  test("without TLS", async () => {
    await using server = await running(trusted);
    const socket = connectTcp(server.port, "127.0.0.1");
    socket.write("GET / HTTP/1.1\r\n\r\n");
    socket.resume().on("error", () => undefined);
    await once(socket, "close");
    expect(server.audit).toMatchObject([{ event: "connection", decision: "denied", reason: "ERR_SSL_HTTP_REQUEST" }]);
  });
});

describe("a client that goes away in the handshake is recorded once, with its address,", () => {
  // The beginning of a TLS record with a ClientHello.
  const HELLO = Buffer.from("16030100c8010000c40303", "hex");
  test.each<[string, (socket: Socket) => unknown]>([
    ["before its first byte", (socket) => socket.end()],
    ["within its first message", (socket) => socket.end(HELLO)],
    ["by a reset", (socket) => socket.write(HELLO, () => socket.resetAndDestroy())],
  ])("%s", async (_, leave) => {
    await using server = await running(trusted);
    const socket = connectTcp(server.port, "127.0.0.1").on("error", () => undefined);
    await once(socket, "connect");
    const peer = `127.0.0.1:${socket.localPort}`;
    leave(socket.resume());
    await until(() => server.audit.length > 0, "the client is recorded");
    await query(server.port, reader);
    expect(server.audit).toMatchObject([{ event: "connection", peer, decision: "denied", reason: "CLIENT_GONE" }, {}]);
  });

  test("and clients that a shutdown sends away are not recorded", async () => {
    const server = await running(trusted);
    const socket = connectTcp(server.port, "127.0.0.1").on("error", () => undefined);
    await once(socket, "connect");
    // Its handshake has begun when the handshake of a later client is over.
    await query(server.port, reader);
    await server.close();
    expect(server.audit.filter(({ event }) => event === "connection")).toEqual([]);
    socket.destroy();
  });
});

describe("the audit log has an address as people write it", () => {
  test.each<[string, string, string, RegExp]>([
    ["IPv4 that came in by IPv6", "::", "127.0.0.1", /^127\.0\.0\.1:\d+$/],
    ["IPv6", "::1", "::1", /^\[::1\]:\d+$/],
  ])("%s", async (_, listen, called, peer) => {
    await using server = await running(trusted, {}, { host: listen });
    using client = clientOf(server.port, trusted.ca, reader, {}, called);
    await answer((done) => client.query({ jobId: JOB.id }, done));
    await outcome(server.port, { host: called });
    await until(() => server.audit.length === 2, "the refusal is recorded");
    expect(server.audit).toMatchObject([
      { event: "call", peer: expect.stringMatching(peer) },
      { event: "connection", peer: expect.stringMatching(peer), reason: "NO_CERTIFICATE" },
    ]);
  });
});

test("a certificate that expires ends its connection, its streams, and every way back in", async () => {
  const notAfter = new Date(Math.ceil(Date.now() / 1000) * 1000 + 1000);
  const shortLived = await trusted.client("reader", { notAfter });
  await using server = await running(trusted, { stream: (_, { signal }) => silence(signal) });
  using client = clientOf(server.port, trusted.ca, shortLived);
  const stream = client.stream(StreamRequest.fromPartial({ jobId: JOB.id, follow: true }));
  const ended = new Promise<number>((resolve) =>
    stream.on("error", (error: { code?: number }) => resolve(error.code ?? -1)),
  );

  // A client that keeps what it can of its session, tickets included.
  const options = {
    host: "127.0.0.1",
    port: server.port,
    ca: trusted.ca.cert,
    servername: "localhost",
    ALPNProtocols: ["h2"],
  };
  const first = connectTls({ ...options, ...shortLived });
  let session: Buffer | undefined;
  first.on("session", (ticket: Buffer) => (session = ticket));
  await once(first, "secureConnect");
  session ??= first.getSession();
  await once(first.resume(), "close");
  expect(Date.now()).toBeGreaterThanOrEqual(notAfter.getTime());
  expect(await ended).toBe(status.UNAVAILABLE);

  await until(() => Date.now() > notAfter.getTime() + 1000, "OpenSSL counts the certificate as expired");
  expect(server.audit.filter(({ event }) => event === "connection")).toEqual([]);
  const second = connectTls({ ...options, ...shortLived, ...(session && { session }) });
  let reused: boolean | undefined;
  second.on("error", () => undefined).on("secureConnect", () => (reused = second.isSessionReused()));
  await once(second.resume(), "close");
  expect(reused).toBe(false);
  expect(server.audit.filter(({ event }) => event === "connection")).toMatchObject([{ reason: "CERT_HAS_EXPIRED" }]);
});

describe("a verified certificate gets no call through, and the audit log says why,", () => {
  test.each<[string, IssueOptions, string, status]>([
    ["without a role", {}, "ROLE_MISSING", status.PERMISSION_DENIED],
    ["with an unknown role", { roles: [derString("Writer")] }, "ROLE_UNKNOWN", status.PERMISSION_DENIED],
    ["with a role of another type", { roles: [derString("writer", 0x13)] }, "ROLE_MALFORMED", status.PERMISSION_DENIED],
    [
      "with two roles",
      { roles: [derString("reader"), derString("writer")] },
      "ROLE_REPEATED",
      status.PERMISSION_DENIED,
    ],
    ["without a name", { roles: [derString("writer")], name: "" }, "CERTIFICATE_NAME", status.UNAUTHENTICATED],
  ])("%s", async (_, options, reason, code) => {
    await using server = await running(trusted);
    const pair = await trusted.issue(options);
    const error = await errorOf(query(server.port, pair));
    expect(error.code).toBe(code);
    using client = clientOf(server.port, trusted.ca, pair);
    const [streamError] = await once(client.stream(StreamRequest.fromPartial({ jobId: JOB.id })), "error");
    expect(streamError).toMatchObject({ code });
    const record = { event: "call", decision: "denied", reason, code: status[code] };
    await until(() => server.audit.length === 2, "both denials are recorded");
    expect(server.audit).toMatchObject([
      { ...record, method: "/jobs.v1.WorkerService/Query" },
      { ...record, method: "/jobs.v1.WorkerService/Stream" },
    ]);
  });
});

test("a reader may look, and may not start, stop or update", async () => {
  const called: string[] = [];
  await using server = await running(trusted, {
    start: () => {
      called.push("start");
      return Promise.resolve({ job: JOB, alreadyStarted: false });
    },
    update: () => {
      called.push("update");
      return Promise.resolve(JOB);
    },
  });
  using client = clientOf(server.port, trusted.ca, reader);
  expect(await answer((done) => client.query({ jobId: JOB.id }, done))).toMatchObject({ pid: JOB.pid, exitCode: -1 });
  const start = await errorOf(answer((done) => client.start(START, done)));
  expect(start.code).toBe(status.PERMISSION_DENIED);
  expect(start.details).toBe('Start needs the role writer or admin; the certificate of "some reader" has reader');
  const stop = await errorOf(answer((done) => client.stop({ jobId: JOB.id, grace: undefined }, done)));
  expect(stop.code).toBe(status.PERMISSION_DENIED);
  const update = await errorOf(answer((done) => client.update({ jobId: JOB.id, resources: undefined }, done)));
  expect(update.code).toBe(status.PERMISSION_DENIED);
  expect(called).toEqual([]);
});

test("the record of a start has the client, the command and how the call ended, and no argument and no variable", async () => {
  await using server = await running(trusted);
  using client = clientOf(server.port, trusted.ca, writer);
  const resources = { memory: { limit: 1n }, unified: new Map([["memory.high", "secret"]]) };
  await answer((done) => client.start(StartRequest.fromPartial({ ...START, resources }), done));
  const call = {
    event: "call",
    method: "/jobs.v1.WorkerService/Start",
    peer: expect.stringMatching(/^127\.0\.0\.1:\d+$/),
    principal: { name: "some writer", role: "writer" },
    decision: "allowed",
    request: { command: "/bin/true", argc: 1, limits: ["memory.limit", "unified.memory.high"] },
  };
  expect(server.audit).toMatchObject([
    { ...call, stage: "begin" },
    { ...call, stage: "end", code: "OK", jobId: JOB.id, durationMs: expect.any(Number) },
  ]);
  expect(server.audit[0]?.id).toBe(server.audit[1]?.id);
  expect(JSON.stringify(server.audit)).not.toContain("secret");
});

test("an update is recorded before it is made, with the limits' names and without their values", async () => {
  await using server = await running(trusted, {
    update: () => {
      expect(server.audit).toHaveLength(1);
      return Promise.resolve(JOB);
    },
  });
  using client = clientOf(server.port, trusted.ca, writer);
  const resources = { cpu: { quota: 1n }, unified: new Map([["memory.high", "secret"]]) };
  await answer((done) => client.update(UpdateRequest.fromPartial({ jobId: JOB.id, resources }), done));
  const call = { method: "/jobs.v1.WorkerService/Update", decision: "allowed", jobId: JOB.id };
  const request = { limits: ["cpu.quota", "unified.memory.high"] };
  expect(server.audit).toMatchObject([
    { ...call, stage: "begin", request },
    { ...call, stage: "end", code: "OK", request },
  ]);
  expect(JSON.stringify(server.audit)).not.toContain("secret");
});

test("a method that does not exist is recorded with the client that called it", async () => {
  await using server = await running(trusted);
  using client = clientOf(server.port, trusted.ca, reader);
  const error = await errorOf(
    answer((done) => client.makeUnaryRequest("/jobs.v1.WorkerService/Shutdown", raw, raw, Buffer.alloc(0), done)),
  );
  expect(error.code).toBe(status.UNIMPLEMENTED);
  expect(server.audit).toMatchObject([
    {
      event: "call",
      method: "/jobs.v1.WorkerService/Shutdown",
      principal: { name: "some reader", role: "reader" },
      decision: "denied",
      reason: "UNKNOWN_METHOD",
      code: "UNIMPLEMENTED",
    },
  ]);
});
