import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { connect as connectTls } from "node:tls";
import { status } from "@grpc/grpc-js";
import { beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { StreamRequest, type WaitResponse } from "../../proto/generated/jobs/v1/worker.ts";
import { networkOf } from "./handshakes.ts";
import { HANDSHAKE_TIMEOUT_MS, MAX_CONNECTIONS_TOLD, MAX_HANDSHAKES, MAX_SILENT, MAX_UNREAD_BYTES } from "./limits.ts";
import { shares } from "./shares.ts";
import { authority, type Authority, type Pair } from "./testing/authority.ts";
import { until } from "../testing/processes.ts";
import {
  answer,
  clientOf,
  errorOf,
  factsOf,
  JOB,
  rawSession,
  running,
  silence,
  type Running,
} from "./testing/server.ts";
import { fairTurns } from "./turns.ts";

/** How long a condition may take on a machine that has much else to do. */
const PATIENCE = { timeout: 90_000 };

let trusted: Authority;
let writer: Pair;
let reader: Pair;
let other: Pair;
beforeAll(async () => {
  trusted = await authority();
  [writer, reader, other] = await Promise.all([
    trusted.client("writer"),
    trusted.client("reader"),
    trusted.client("reader", { name: "another reader" }),
  ]);
});

/** Opens a TCP connection that says `words` and nothing else, from an address of the loopback. */
async function knock(port: number, words = "", localAddress = "127.0.0.1"): Promise<Socket> {
  const socket = connect({ port, host: "127.0.0.1", localAddress }).on("error", () => undefined);
  onTestFinished(() => void socket.destroy());
  socket.resume();
  await once(socket, "connect");
  if (words !== "") socket.write(words, "latin1");
  return socket;
}

async function knocks(count: number, ...how: [port: number, words?: string, from?: string]): Promise<Socket[]> {
  const sockets: Socket[] = [];
  for (let i = 0; i < count; i++) sockets.push(await knock(...how));
  return sockets;
}

async function query(server: Running, pair: Pair): Promise<unknown> {
  using client = clientOf(server.port, trusted.ca, pair, ownPool);
  return await answer((done) => client.query({ jobId: JOB.id }, done));
}

// A half-said hello is the beginning of a TLS record.
describe.each([
  ["silent", "", MAX_SILENT],
  ["half-said", "\x16\x03\x01", MAX_HANDSHAKES],
])("%s handshakes beyond the limit", (_, words, most) => {
  test("end the oldest, and a new client from the same address gets in", async () => {
    await using server = await running(trusted);
    const idle = await knocks(most + 20, server.port, words);
    await until(() => idle.filter(({ closed }) => closed).length >= 20, "those beyond the limit are closed");
    expect(idle.slice(0, 20).every(({ closed }) => closed)).toBe(true);
    expect(await query(server, writer)).toMatchObject({ pid: JOB.pid });
    expect(server.audit[0]).toMatchObject({ event: "connection", reason: "TOO_MANY_HANDSHAKES", decision: "denied" });
  });

  test("end handshakes of the address that has the most", async () => {
    await using server = await running(trusted);
    const beganMs = performance.now();
    const slow = await knock(server.port, words, "127.0.0.2");
    const flood = await knocks(most + 20, server.port, words);
    await until(() => flood.filter(({ closed }) => closed).length > 20, "those beyond the limit are closed");
    // A slow machine may take so long that the handshake's own time is over.
    expect(slow.closed && performance.now() - beganMs < HANDSHAKE_TIMEOUT_MS).toBe(false);
  });
});

test("a client whose words come byte by byte is let in like any other", async () => {
  await using server = await running(trusted);
  const proxy = createServer((near) => {
    const far = connect(server.port, "127.0.0.1").setNoDelay();
    far.on("error", () => undefined).pipe(near.on("error", () => undefined));
    near.on("data", (bytes: Buffer) => {
      for (const byte of bytes) far.write(Buffer.of(byte));
    });
    near.on("close", () => far.destroy());
  }).listen(0, "127.0.0.1");
  onTestFinished(() => void proxy.close());
  await once(proxy, "listening");
  const address = proxy.address();
  using client = clientOf(typeof address === "object" ? (address?.port ?? 0) : 0, trusted.ca, writer);
  expect(await answer((done) => client.query({ jobId: JOB.id }, done))).toMatchObject({ pid: JOB.pid });
});

test.each([
  ["192.0.2.7", "192.0.2.7"],
  ["::ffff:192.0.2.7", "192.0.2.7"],
  ["2001:db8:1:2:3:4:5:6", "2001:db8:1:2"],
  ["2001:db8::6", "2001:db8:0:0"],
  ["::1", "0:0:0:0"],
  ["1::", "1:0:0:0"],
])("the network of %s is %s", (remoteAddress, network) => expect(networkOf({ remoteAddress })).toBe(network));

describe("a client with as many connections as one may have", () => {
  test("is told so, by the limit's name and number, while others come in", async () => {
    await using server = await running(trusted, {}, { maxConnections: 16 });
    const clients = Array.from({ length: 8 }, () => clientOf(server.port, trusted.ca, reader, ownPool));
    onTestFinished(() => clients.forEach((client) => client.close()));
    for (const client of clients) await answer((done) => client.query({ jobId: JOB.id }, done));
    const refused = await errorOf(query(server, reader));
    expect(refused.code).toBe(status.RESOURCE_EXHAUSTED);
    expect(refused.details).toContain("8 connections open, which is as many as they may");
    expect(factsOf(refused)).toMatchObject({
      reason: "TOO_MANY_CONNECTIONS",
      limit: "connections-of-one-client",
      maximum: "8",
    });
    expect(server.audit.some(({ event, reason }) => event === "connection" && reason === "TOO_MANY_CONNECTIONS")).toBe(
      true,
    );
    expect(await query(server, other)).toMatchObject({ pid: JOB.pid });
    expect(await query(server, writer)).toMatchObject({ pid: JOB.pid });
    clients[0]?.close();
    await expect
      .poll(
        () =>
          query(server, reader).then(
            () => "in",
            () => "out",
          ),
        PATIENCE,
      )
      .toBe("in");
  });

  test("is its whole subject: another one with the same common name has a share of its own", async () => {
    await using server = await running(trusted, {}, { maxConnections: 16 });
    const [one, two] = await Promise.all(
      ["O=One", "O=Two"].map((rest) => trusted.client("reader", { subject: `CN=ada,${rest}` })),
    );
    const sessions = new AsyncDisposableStack();
    onTestFinished(() => sessions.disposeAsync());
    for (let i = 0; i < 8; i++) sessions.use(await handshaken(server, one as Pair));
    expect((await errorOf(query(server, one as Pair))).code).toBe(status.RESOURCE_EXHAUSTED);
    expect(await query(server, two as Pair)).toMatchObject({ pid: JOB.pid });
  });

  test("is told for a moment: then, or among many at once, its further connections are closed", async () => {
    await using server = await running(trusted, {}, { maxConnections: 2 });
    await using _first = await handshaken(server, reader);
    const more = await Promise.all(Array.from({ length: MAX_CONNECTIONS_TOLD }, () => handshaken(server, reader)));
    await until(() => more.filter(({ socket }) => socket.closed).length >= MAX_CONNECTIONS_TOLD / 2, "half are closed");
    expect(more.some(({ socket }) => !socket.closed)).toBe(true);
    await expect.poll(() => more.every(({ socket }) => socket.closed), PATIENCE).toBe(true);
  });
});

const ownPool = { "grpc.use_local_subchannel_pool": 1 };

/** Opens a connection that shows a certificate and never speaks HTTP/2. */
async function handshaken(server: Running, pair: Pair) {
  const socket = connectTls({
    port: server.port,
    ca: trusted.ca.cert,
    ...pair,
    servername: "localhost",
    ALPNProtocols: ["h2"],
  });
  socket.on("error", () => undefined).resume();
  await once(socket, "secureConnect");
  return { socket, [Symbol.asyncDispose]: () => Promise.resolve(void socket.destroy()) };
}

describe("a client with as many calls as one may have", () => {
  const waiting = { wait: (_: string, signal?: AbortSignal) => never(signal), stream: followed };
  function followed(_: string, { signal }: { signal?: AbortSignal }) {
    return silence(signal);
  }
  async function never(signal: AbortSignal | undefined): Promise<never> {
    if (signal) await once(signal, "abort");
    throw new Error("given up");
  }

  test("is told so, by the limit's name and number, while others call, and may again when one has ended", async () => {
    await using server = await running(trusted, waiting, { maxCalls: 16 });
    using client = clientOf(server.port, trusted.ca, reader);
    using second = clientOf(server.port, trusted.ca, reader, ownPool);
    const follow = StreamRequest.fromPartial({ jobId: JOB.id, follow: true });
    const streams = Array.from({ length: 4 }, () => client.stream(follow).on("error", () => undefined));
    const waits = Array.from({ length: 4 }, () => client.wait({ jobId: JOB.id }, () => undefined));
    await until(() => server.audit.filter(({ stage }) => stage === "begin").length === 4, "the streams have begun");
    await expect
      .poll(() => answer((done) => second.query({ jobId: JOB.id }, done)).catch((error: unknown) => error), PATIENCE)
      .toMatchObject({ code: status.RESOURCE_EXHAUSTED });
    const refused = await errorOf(answer((done) => second.query({ jobId: JOB.id }, done)));
    expect(refused.details).toContain("8 calls open, which is as many as they may");
    expect(factsOf(refused)).toMatchObject({ reason: "TOO_MANY_CALLS", limit: "calls-of-one-client", maximum: "8" });
    expect(server.audit.at(-1)).toMatchObject({ decision: "denied", code: "RESOURCE_EXHAUSTED" });
    expect(await query(server, writer)).toMatchObject({ pid: JOB.pid });
    streams[0]?.cancel();
    waits[0]?.cancel();
    await expect
      .poll(() => answer((done) => second.query({ jobId: JOB.id }, done)).catch(() => undefined), PATIENCE)
      .toMatchObject({ pid: JOB.pid });
  });

  test("is charged for calls whose answers it does not read, too", async () => {
    const bytes = Buffer.alloc(1024 * 1024);
    await using server = await running(
      trusted,
      {
        async *stream() {
          yield { kind: "chunk", source: "stdout", timeMs: 0, offset: 0, bytes };
          return { offset: 0, job: JOB };
        },
      },
      { maxCalls: 16 },
    );
    using client = clientOf(server.port, trusted.ca, reader);
    // The streams stall, because nobody listens to "data".
    const stalled = Array.from({ length: 8 }, () =>
      client.stream(StreamRequest.fromPartial({ jobId: JOB.id })).on("error", () => undefined),
    );
    await expect
      .poll(() => query(server, reader).catch((error: unknown) => error), PATIENCE)
      .toMatchObject({ code: status.RESOURCE_EXHAUSTED });
    for (const stream of stalled) stream.cancel();
    await expect.poll(() => query(server, reader).catch(() => undefined), PATIENCE).toMatchObject({ pid: JOB.pid });
  });
});

test.each(["2592000S", "4294967S", "99999999H", "99999999M"])(
  "a deadline of %s, later than a timer can wait, ends no call at once",
  async (timeout) => {
    await using server = await running(trusted, { wait: () => new Promise((done) => setTimeout(done, 1500, JOB)) });
    using session = rawSession(server.port, trusted.ca, reader);
    const stream = session.request("Wait", { "grpc-timeout": timeout });
    stream.end(Buffer.from([0, 0, 0, 0, 0])).resume();
    const [trailers] = (await once(stream, "trailers")) as [Record<string, string>];
    expect(trailers["grpc-status"]).toBe(String(status.OK));
  },
  PATIENCE.timeout,
);

test("hundreds who wait for a job with many arguments have their answers while others have theirs", async () => {
  const end = Promise.withResolvers<void>();
  const long = { ...JOB, args: Array.from({ length: 100_000 }, (_, i) => `argument ${i}`) };
  await using server = await running(trusted, {
    wait: async () => {
      await end.promise;
      return long;
    },
  });
  using client = clientOf(server.port, trusted.ca, reader);
  const answers = Array.from({ length: 300 }, () => answer<WaitResponse>((done) => client.wait({ jobId: "x" }, done)));
  expect(await query(server, writer)).toMatchObject({ pid: JOB.pid });
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  end.resolve();
  const jobs = (await Promise.all(answers)).map(({ job }) => job);
  delay.disable();
  expect(jobs.every((job) => job?.cut.includes("args") && job.args[0] === "argument 0")).toBe(true);
  // Each whole answer takes 20 ms or more: made in one turn, all of them would take 6 s.
  expect(delay.max / 1e6).toBeLessThan(1000);
});

test("a client that does not read long answers gets no more of them, while others do", async () => {
  const long = { ...JOB, args: Array.from({ length: 32 }, () => "x".repeat(64 * 1024)) };
  await using server = await running(trusted, { query: () => long });
  // A window of 0 bytes takes nothing of an answer: RFC 9113, 6.9.2.
  using session = rawSession(server.port, trusted.ca, reader, { initialWindowSize: 0 });
  for (let i = 0; i < 100; i++) session.request("Query").end(Buffer.from([0, 0, 0, 0, 0]));
  await expect
    .poll(() => {
      session.check();
      return query(server, reader).then(() => undefined, factsOf);
    }, PATIENCE)
    .toMatchObject({
      reason: "UNREAD_ANSWERS",
      limit: "unread-bytes-of-one-client",
      maximum: String(MAX_UNREAD_BYTES),
    });
  expect(await query(server, writer)).toMatchObject({ pid: JOB.pid });
  expect(process.memoryUsage().arrayBuffers).toBeLessThan(4 * MAX_UNREAD_BYTES);
  session[Symbol.dispose]();
  await expect.poll(() => query(server, reader).catch(() => undefined), PATIENCE).toMatchObject({ pid: JOB.pid });
});

test("one client has a half of a limit at most, and the last eighth is for clients that have few", () => {
  const limit = shares(512);
  for (let i = 0; i < 256; i++) limit.take("one");
  expect(limit.full("one")).toEqual({ whose: "own", maximum: 256 });
  for (let i = 0; i < 192; i++) {
    expect(limit.full("two")).toBeUndefined();
    limit.take("two");
  }
  expect(limit.full("two")).toEqual({ whose: "all", maximum: 512 });
  for (let i = 0; i < 32; i++)
    for (let few = 0; few < 2; few++) {
      expect(limit.full(`few ${i}`)).toBeUndefined();
      limit.take(`few ${i}`);
    }
  expect(limit.full("nobody yet")).toEqual({ whose: "all", maximum: 512 });
  limit.give("two");
  expect([limit.full("two"), limit.full("nobody yet")]).toEqual([{ whose: "all", maximum: 512 }, undefined]);
});

test("work that continues a call comes before calls that have not begun", async () => {
  const turns = fairTurns(0);
  const order: string[] = [];
  for (const call of ["a", "b", "c"])
    turns.take("one", () => {
      order.push(`${call} 1`);
      turns.take("one", () => order.push(`${call} 2`) > 0, "begun");
      return true;
    });
  await until(() => order.length === 6, "all had their turns");
  expect(order).toEqual(["a 1", "a 2", "b 1", "b 2", "c 1", "c 2"]);
});

test("a client that asks for a thousand turns at once waits behind its own, and others come between", async () => {
  const turns = fairTurns(0);
  const order: string[] = [];
  let loops = 0;
  const count = (): void => {
    loops++;
    if (order.length < 1003) setImmediate(count);
  };
  setImmediate(count);
  for (let i = 0; i < 1000; i++) turns.take("many", () => order.push("many") > 0);
  for (let i = 0; i < 3; i++) turns.take("few", () => order.push("few") > 0);
  await until(() => order.length === 1003, "all had their turns");
  expect(order.slice(0, 7)).toEqual(["many", "few", "many", "few", "many", "few", "many"]);
  expect(loops).toBeGreaterThan(900);
});
