import { once } from "node:events";
import { gzipSync } from "node:zlib";
import { status } from "@grpc/grpc-js";
import { beforeAll, expect, test } from "vitest";
import { StartRequest } from "../../proto/generated/jobs/v1/worker.ts";
import { JobError } from "../worker/model/errors.ts";
import { strictly } from "./requests.ts";
import { MAX_REQUESTS_BYTES } from "./limits.ts";
import { SERVICE } from "./stream.ts";
import { authority } from "./testing/authority.ts";
import { until } from "../testing/processes.ts";
import { answer, clientOf, cpuMs, errorOf, factsOf, JOB, rawSession, running } from "./testing/server.ts";
import type { Authority, Pair } from "./testing/authority.ts";
import type { Running } from "./testing/server.ts";

let trusted: Authority;
let writer: Pair;
let reader: Pair;
beforeAll(async () => {
  trusted = await authority();
  [writer, reader] = await Promise.all([trusted.client("writer"), trusted.client("reader")]);
});

const { start } = strictly(SERVICE);
function read(bytes: Uint8Array): unknown {
  const request: unknown = start.requestDeserialize(Buffer.from(bytes));
  return typeof request === "function" ? request() : request;
}

test("a request is decoded as it was encoded, with a byte order mark and every plane of Unicode", () => {
  const request = StartRequest.fromPartial({ command: "\ufeffsh\u{1f600}é", env: new Map([["A\u2028", "b"]]) });
  expect(read(StartRequest.encode(request).finish())).toEqual(request);
});

test("a start with as many arguments, variables and limits as it may have is decoded", () => {
  const args = Array.from({ length: 193_000 }, () => "");
  const env = new Map(Array.from({ length: 19_000 }, (_, i) => [String(i), ""]));
  const resources = { devices: Array.from({ length: 500 }, () => ({ allow: true, type: "c", access: "rw" })) };
  const whole = StartRequest.fromPartial({ command: "a", args, env, resources });
  expect(read(StartRequest.encode(whole).finish())).toEqual(whole);
});

const TAGS = { args: 0x12, resources: 0x1a, env: 0x22, labels: 0x42, rlimits: 0x6a, argvBytes: 0x8a };

test.each<[string, readonly number[], RegExp]>([
  ["arguments", [TAGS.args, 0], /more than 233016 arguments/],
  ["arguments in bytes", [TAGS.argvBytes, 1, 0], /or 58254 in bytes/],
  ["variables", [TAGS.env, 0], /more than 20000 variables/],
  ["labels", [TAGS.labels, 0], /more than 20000 variables, labels/],
  ["resource limits", [TAGS.rlimits, 0], /more than 20000 variables, labels and limits/],
  ["limits", [TAGS.resources, 0], /more than 20000 variables, labels and limits/],
])("a start with a million empty %s is refused before the event loop has been held for long", (_, field, message) => {
  const request = Buffer.alloc(1_000_000 * field.length, Buffer.from(field));
  const beganMs = cpuMs();
  expect(read(request)).toMatchObject({ code: "invalid", message: expect.stringMatching(message) });
  expect(cpuMs() - beganMs).toBeLessThan(50);
});

test.each([
  ["a string with a byte that is no UTF-8", [0x0a, 1, 0xff], "a string in it is not UTF-8"],
  ["a surrogate in UTF-8", [0x0a, 3, 0xed, 0xa0, 0x80], "a string in it is not UTF-8"],
  ["an overlong character", [0x12, 2, 0xc0, 0xaf], "a string in it is not UTF-8"],
  ["a map's key that is no UTF-8", [0x22, 3, 0x0a, 1, 0xff], "a string in it is not UTF-8"],
  ["a long string that is no UTF-8", [0x0a, 100, ...Array.from({ length: 99 }, () => 0x61), 0xff], "is not UTF-8"],
  ["a field that is longer than the request", [0x0a, 9, 0x61], "the request cannot be read: "],
])("%s reaches its handler as an error of the request's", (_, bytes, message) => {
  const error = read(Uint8Array.from(bytes));
  expect(error).toBeInstanceOf(JobError);
  expect(error).toMatchObject({ code: "invalid", message: expect.stringContaining(message) });
});

async function query(server: Running, pair: Pair): Promise<unknown> {
  using client = clientOf(server.port, trusted.ca, pair);
  return await answer((done) => client.query({ jobId: JOB.id }, done));
}

test.each(["Query", "List", "Stream", "Wait"])(
  "a %s whose request has no end is ended, and not kept",
  async (method) => {
    await using server = await running(trusted);
    using session = rawSession(server.port, trusted.ca, reader);
    const stream = session.request(method);
    // A message of 2 MB is to come: grpc/doc/PROTOCOL-HTTP2.md, "Length-Prefixed-Message".
    stream.write(Buffer.from([0, 0, 0x20, 0, 0]));
    stream.write(Buffer.alloc(100_000));
    const [headers] = (await once(stream, "response")) as [Record<string, string>];
    expect(headers["grpc-status"]).toBe(String(status.RESOURCE_EXHAUSTED));
    expect(decodeURI(headers["grpc-message"] ?? "")).toContain("longer than 65536 bytes");
  },
);

test("requests that a client does not end have 32 MiB at most, while others call", async () => {
  await using server = await running(trusted);
  using session = rawSession(server.port, trusted.ca, writer);
  const half = Buffer.concat([Buffer.from([0, 0, 0x20, 0, 0]), Buffer.alloc(2_000_000)]);
  const refusals: unknown[] = [];
  for (let i = 0; i < 20; i++) {
    const stream = session.request("Start");
    stream.on("response", (headers) => refusals.push(headers["grpc-message"]));
    stream.resume().write(half);
  }
  await until(() => refusals.length > 0, "a request beyond the limit is refused");
  expect(decodeURI(String(refusals[0]))).toContain(`requests of ${MAX_REQUESTS_BYTES} bytes`);
  await until(() => server.audit.length > 0, "the refusal is recorded");
  expect(server.audit[0]).toMatchObject({
    decision: "denied",
    code: "RESOURCE_EXHAUSTED",
    reason: "TOO_MANY_REQUEST_BYTES",
  });
  expect(await query(server, reader)).toMatchObject({ pid: JOB.pid });
  expect(factsOf(await errorOf(query(server, writer)))).toMatchObject({
    reason: "TOO_MANY_REQUEST_BYTES",
    limit: "request-bytes-of-one-client",
    maximum: String(MAX_REQUESTS_BYTES),
  });
  session[Symbol.dispose]();
  await expect
    .poll(() => query(server, writer).catch(() => undefined), { timeout: 30_000 })
    .toMatchObject({ pid: JOB.pid });
});

test("long requests that end at once are decoded one in a turn of the event loop", async () => {
  await using server = await running(trusted);
  const env = new Map(Array.from({ length: 100_000 }, (_, i) => [String(i), ""]));
  const bytes = Buffer.from(StartRequest.encode(StartRequest.fromPartial({ command: "a", env })).finish());
  const beganMs = cpuMs();
  StartRequest.decode(bytes);
  const decodeMs = cpuMs() - beganMs;
  using session = rawSession(server.port, trusted.ca, writer);
  const length = Buffer.alloc(5);
  length.writeUInt32BE(bytes.length, 1);
  const streams = Array.from({ length: 10 }, () => session.request("Start"));
  const answers = streams.map((stream) => once(stream.resume(), "response"));
  const begun = streams.map(
    (stream) => new Promise((done) => stream.write(Buffer.concat([length, bytes.subarray(0, -1)]), done)),
  );
  await Promise.all(begun);
  let longestMs = 0;
  let lastMs = cpuMs();
  let done = false;
  const look = (): void => {
    longestMs = Math.max(longestMs, cpuMs() - lastMs);
    lastMs = cpuMs();
    if (!done) setImmediate(look);
  };
  look();
  for (const stream of streams) stream.end(bytes.subarray(-1));
  await Promise.all(answers);
  done = true;
  expect(longestMs).toBeLessThan(5 * decodeMs);
});

test.each(["Query", "List", "Stream", "Wait", "Start"])(
  "a %s whose request is compressed is refused before it is unpacked: 4 KB may be 4 MB",
  async (method) => {
    await using server = await running(trusted);
    using session = rawSession(server.port, trusted.ca, writer);
    const packed = gzipSync(Buffer.alloc(4_000_000, Buffer.from([0x12, 0])));
    const stream = session.request(method, { "grpc-encoding": "gzip" });
    stream.end(Buffer.concat([Buffer.from([1, 0, 0, packed.length >> 8, packed.length & 0xff]), packed]));
    const [headers] = (await once(stream, "response")) as [Record<string, string>];
    expect(headers["grpc-status"]).toBe(String(status.UNIMPLEMENTED));
    expect(server.audit).toMatchObject([{ decision: "denied", reason: "REQUEST_COMPRESSED" }]);
  },
);
