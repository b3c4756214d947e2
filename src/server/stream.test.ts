import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";
import { status } from "@grpc/grpc-js";
import { beforeAll, describe, expect, test } from "vitest";
import {
  Source,
  State,
  StatsRequest,
  type StatsResponse,
  StreamRequest,
  StreamResponse,
} from "../../proto/generated/jobs/v1/worker.ts";
import type { Chunk } from "../worker/log/reader.ts";
import type { Worker } from "../worker/worker.ts";
import { encode } from "./stream.ts";
import { authority, type Authority, type Pair } from "./testing/authority.ts";
import { until } from "../testing/processes.ts";
import { clientOf, JOB, running, silence } from "./testing/server.ts";

let trusted: Authority;
let reader: Pair;
beforeAll(async () => {
  trusted = await authority();
  reader = await trusted.client("reader");
});

const REQUEST = StreamRequest.fromPartial({ jobId: JOB.id, follow: true });
const MESSAGE_BYTES = 256 * 1024;

function chunk(offset: number, bytes: Buffer): Chunk {
  return { kind: "chunk", source: offset % 2 === 0 ? "stdout" : "stderr", timeMs: 1_767_323_045_678, offset, bytes };
}

test.each([0, 1, 127, 128, 2 ** 31, 2 ** 32 + 1, Number.MAX_SAFE_INTEGER])(
  "a chunk at offset %d is what the proto says",
  (offset) => {
    const message = encode(chunk(offset, Buffer.from("some bytes")));
    const wire = Buffer.alloc(message.byteLength);
    expect(message.copy(wire, 0)).toBe(wire.length);
    expect(StreamResponse.decode(wire)).toEqual({
      output: Buffer.from("some bytes"),
      source: offset % 2 === 0 ? Source.SOURCE_STDOUT : Source.SOURCE_STDERR,
      time: new Date(1_767_323_045_678),
      offset: BigInt(offset),
      gap: 0n,
      end: undefined,
    });
  },
);

test("chunks whose buffer is used again at once, gaps and the end arrive whole and in order", async () => {
  const count = 64;
  await using server = await running(trusted, {
    async *stream() {
      const bytes = Buffer.alloc(MESSAGE_BYTES);
      for (let i = 0; i < count; i++) yield chunk(i * MESSAGE_BYTES, bytes.fill(i));
      bytes.fill(0xff);
      yield { kind: "gap", offset: count * MESSAGE_BYTES, length: 42 };
      return { offset: count * MESSAGE_BYTES + 42, job: { ...JOB, state: "ended" } };
    },
  });
  using client = clientOf(server.port, trusted.ca, reader);
  const messages: StreamResponse[] = await client.stream(REQUEST).toArray();
  expect(messages).toHaveLength(count + 2);
  for (const [i, { output, offset }] of messages.slice(0, count).entries()) {
    expect(offset).toBe(BigInt(i * MESSAGE_BYTES));
    expect(output.equals(Buffer.alloc(MESSAGE_BYTES, i))).toBe(true);
  }
  const [gap, end] = messages.slice(count);
  expect(gap).toMatchObject({ offset: BigInt(count * MESSAGE_BYTES), gap: 42n, end: undefined });
  expect(end).toMatchObject({
    offset: BigInt(count * MESSAGE_BYTES + 42),
    end: { id: JOB.id, state: State.STATE_ENDED },
  });
});

describe("a client that does not read", () => {
  /** Makes endless output, and counts how much of it was taken and whether it was let go of. */
  function flood() {
    const seen = { taken: 0, returned: false };
    async function* stream(): ReturnType<Worker["stream"]> {
      try {
        for (;;) yield chunk(seen.taken++ * MESSAGE_BYTES, Buffer.alloc(MESSAGE_BYTES));
      } finally {
        seen.returned = true;
      }
    }
    return { seen, stream };
  }

  async function standsStill(seen: { taken: number }): Promise<void> {
    let [before, polls] = [0, 0];
    await until(() => {
      polls = seen.taken === before && before > 0 ? polls + 1 : 0;
      before = seen.taken;
      return polls > 30;
    }, "no more output is taken");
  }

  test("holds back the job's output and not the server's memory, until it cancels", async () => {
    const { seen, stream } = flood();
    await using server = await running(trusted, { stream });
    using client = clientOf(server.port, trusted.ca, reader);
    const call = client.stream(REQUEST);
    call.on("error", () => undefined);
    await once(call, "readable");
    await standsStill(seen);
    // The client's queue has 16 messages, the server's HTTP/2 one, and one was read ahead.
    expect(seen.taken).toBeLessThan(22);
    expect(seen.returned).toBe(false);
    call.cancel();
    await until(() => seen.returned, "the worker's iterator is returned");
  });

  test("and whose connection breaks is forgotten, although no callback and no drain comes for it", async () => {
    const { seen, stream } = flood();
    await using server = await running(trusted, { stream });
    const ends: Socket[] = [];
    const proxy = createServer((near) => {
      const far = connect(server.port, "127.0.0.1");
      for (const socket of [near, far]) socket.on("error", () => undefined);
      ends.push(near, far);
      near.pipe(far).pipe(near);
    }).listen(0, "127.0.0.1");
    await once(proxy, "listening");
    const address = proxy.address();
    using client = clientOf(typeof address === "object" ? (address?.port ?? 0) : 0, trusted.ca, reader);
    const call = client.stream(REQUEST);
    call.on("error", () => undefined);
    await once(call, "readable");
    await standsStill(seen);
    for (const socket of ends) socket.resetAndDestroy();
    await until(() => seen.returned, "the worker's iterator is returned");
    proxy.close();
  });
});

test("samples of a job's usage are not taken for a client that does not read", async () => {
  let [taken, returned] = [0, false];
  const usage = { elapsedMs: 1, cpuUserUs: 2, cpuSystemUs: 3, fromCgroup: true };
  await using server = await running(trusted, {
    async *stats() {
      try {
        for (;;) {
          taken++;
          yield usage;
        }
      } finally {
        returned = true;
      }
    },
  });
  using client = clientOf(server.port, trusted.ca, reader);
  const call = client.stats(StatsRequest.fromPartial({ jobId: JOB.id }));
  call.on("error", () => undefined);
  await once(call, "readable");
  let [before, polls] = [0, 0];
  await until(() => {
    polls = taken === before ? polls + 1 : 0;
    before = taken;
    return polls > 30;
  }, "no more samples are taken");
  // Fewer samples than this fit in a window of 64 KiB.
  expect(taken).toBeLessThan(4000);
  expect(returned).toBe(false);
  call.cancel();
  await until(() => returned, "the samples are given up");
});

test("a job's last sample carries the job as it ended, and its usage", async () => {
  const usage = { elapsedMs: 1500, cpuUserUs: 2, cpuSystemUs: 3, oomKills: 4, fromCgroup: true };
  await using server = await running(trusted, {
    async *stats(id, { intervalMs }) {
      expect([id, intervalMs]).toEqual([JOB.id, 250]);
      yield { ...usage, elapsedMs: 1 };
      return { ...JOB, state: "ended", usage };
    },
  });
  using client = clientOf(server.port, trusted.ca, reader);
  const request = StatsRequest.fromPartial({ jobId: JOB.id, interval: { nanos: 250_000_000 } });
  const [first, last, ...more]: StatsResponse[] = await client.stats(request).toArray();
  expect(more).toEqual([]);
  expect(first).toMatchObject({ time: expect.any(Date), usage: { elapsed: { nanos: 1_000_000 } }, end: undefined });
  expect(last).toMatchObject({
    usage: { elapsed: { seconds: 1n, nanos: 500_000_000 }, oomKills: 4n },
    end: { id: JOB.id, state: State.STATE_ENDED, usage: last?.usage },
  });
});

test("a follower that goes while nothing is written lets go of the job's output at once", async () => {
  let signal: AbortSignal | undefined;
  let returned = false;
  await using server = await running(trusted, {
    async *stream(_, options) {
      signal = options.signal;
      try {
        return yield* silence(signal);
      } finally {
        returned = true;
      }
    },
  });
  using client = clientOf(server.port, trusted.ca, reader);
  const stream = client.stream(REQUEST);
  stream.on("error", () => undefined);
  await until(() => signal !== undefined, "the stream has begun");
  stream.cancel();
  await until(() => returned, "the iterator is returned");
  await until(() => server.audit.length === 2, "the end is recorded");
  expect(server.audit).toMatchObject([{ stage: "begin" }, { stage: "end", code: "CANCELLED", jobId: JOB.id }]);
});

test("a job that does not exist is NOT_FOUND, and no empty stream", async () => {
  await using server = await running(trusted);
  using client = clientOf(server.port, trusted.ca, reader);
  const [error] = await once(client.stream(StreamRequest.fromPartial({ jobId: "../../etc/passwd" })), "error");
  expect(error).toMatchObject({ code: status.NOT_FOUND, details: 'no job "../../etc/passwd"' });
});
