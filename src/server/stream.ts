import type { ServerWritableStream } from "@grpc/grpc-js";
import {
  type PruneRequest,
  type PruneResponse,
  Source,
  type StatsRequest,
  type StatsResponse,
  type StreamRequest,
  StreamResponse,
  WorkerServiceService,
} from "../../proto/generated/jobs/v1/worker.ts";
import { brief, type Chunk, type Gap, type Job, type Jobs } from "../worker/index.ts";
import type { CallContext } from "./guard.ts";
import type { ServerMeter } from "./meter.ts";
import { fromJob, fromUsage, toPruneFilter, toStatsOptions, toStreamOptions } from "./translate.ts";

/** The last message: the job as it is, and the offset to resume from. */
interface End {
  readonly kind: "end";
  readonly offset: number;
  readonly job: Job;
}

export type StreamMessage = Chunk | Gap | End;

/** Streams a job's output to a client until there is no more. Throws the reason of `signal` when that ends the stream. */
export async function streamOutput(
  jobs: Jobs,
  call: ServerWritableStream<StreamRequest, StreamMessage>,
  { signal }: CallContext,
  meter: ServerMeter,
): Promise<void> {
  await using output = jobs.stream(call.request.jobId, toStreamOptions(call.request, signal));
  const write = writer(call, signal);
  let sent = Promise.resolve();
  for (;;) {
    const next = await output.next();
    await sent;
    signal.throwIfAborted();
    if (next.done) {
      void write({ kind: "end", ...next.value });
      return;
    }
    if (next.value.kind === "chunk") meter.sent(next.value.bytes.length);
    else meter.gap(next.value.length);
    sent = write(next.value);
  }
}

/**
 * Streams what a job uses until it has ended. The next sample is taken when HTTP/2 has the one before it. The first sample
 * and each message have turns, since many may watch one job, and its end is told to all of them at once.
 */
export async function streamStats(
  jobs: Jobs,
  call: ServerWritableStream<StatsRequest, StatsResponse>,
  { signal, turn }: CallContext,
): Promise<void> {
  await using samples = jobs.stats(call.request.jobId, toStatsOptions(call.request, signal));
  const write = writer(call, signal);
  for (;;) {
    const next = await turn(() => samples.next());
    signal.throwIfAborted();
    const usage = next.done ? next.value.usage : next.value;
    const sent = await turn(() => {
      const end = next.done ? fromJob(brief(next.value)) : undefined;
      return { taken: write({ time: new Date(), usage: usage && fromUsage(usage), end }) };
    });
    if (next.done) return;
    await sent.taken;
  }
}

/** Removes jobs, and streams which. A client that takes no messages holds up its own pruning. */
export async function streamPruned(
  jobs: Jobs,
  call: ServerWritableStream<PruneRequest, PruneResponse>,
  { signal }: CallContext,
): Promise<void> {
  const write = writer(call, signal);
  for await (const jobIds of jobs.prune(toPruneFilter(call.request), signal)) {
    await write({ jobIds: [...jobIds] });
    signal.throwIfAborted();
  }
}

/**
 * Writes one message at a time. The promise resolves when HTTP/2 has taken the message, or when the call is over: neither
 * grpc-js's callback nor its 'drain' comes after that. Waiting bounds a call's memory to one message, and the one that is
 * read meanwhile. It also has each chunk serialised before its buffer is used again: grpc-js would queue 16 as they are.
 */
export function writer<Message>(call: Pick<ServerWritableStream<unknown, Message>, "write">, signal: AbortSignal) {
  let release: (() => void) | undefined;
  signal.addEventListener("abort", () => release?.(), { once: true });
  return (message: Message): Promise<void> =>
    new Promise((resolve) => {
      release = resolve;
      call.write(message, () => resolve());
    });
}

const SOURCES = { stdout: Source.SOURCE_STDOUT, stderr: Source.SOURCE_STDERR } as const;

/** Serialises what is serialised already. */
export function asItIs(bytes: Buffer): Buffer {
  return bytes;
}

/**
 * WorkerService with long answers that are serialised already. Its Stream takes the worker's own messages, and copies a
 * chunk's bytes once.
 */
export const SERVICE = {
  ...WorkerServiceService,
  query: { ...WorkerServiceService.query, responseSerialize: asItIs },
  list: { ...WorkerServiceService.list, responseSerialize: asItIs },
  wait: { ...WorkerServiceService.wait, responseSerialize: asItIs },
  stream: { ...WorkerServiceService.stream, responseSerialize: encode },
} as const;

const EMPTY = Buffer.alloc(0);
// Tags of the fields of StreamResponse and Timestamp: number << 3 | wire type.
const OUTPUT = 0x0a;
const SOURCE = 0x10;
const TIME = 0x1a;
const OFFSET = 0x20;
const SECONDS = 0x08;
const NANOS = 0x10;
/** The most bytes of a chunk's fields without its output. */
const MAX_HEADER = 64;

/** Encodes a StreamResponse. Fields may come in any order, so a chunk's bytes go last, behind a small header. */
export function encode(message: StreamMessage): Buffer {
  switch (message.kind) {
    case "chunk":
      return encodeChunk(message);
    case "gap":
      return encodeRest({ offset: BigInt(message.offset), gap: BigInt(message.length) });
    default:
      return encodeRest({ offset: BigInt(message.offset), end: fromJob(brief(message.job)) });
  }
}

function encodeRest(fields: Partial<StreamResponse>): Buffer {
  const message = { output: EMPTY, source: Source.SOURCE_UNSPECIFIED, time: undefined, offset: 0n, gap: 0n };
  const bytes = StreamResponse.encode({ ...message, end: undefined, ...fields }).finish();
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function encodeChunk({ source, timeMs, offset, bytes }: Chunk): Buffer {
  const header = Buffer.allocUnsafe(MAX_HEADER);
  const seconds = Math.floor(timeMs / 1000);
  let at = varint(header, 0, SOURCE);
  at = varint(header, at, SOURCES[source]);
  at = varint(header, at, OFFSET);
  at = varint(header, at, offset);
  const timeAt = varint(header, at, TIME);
  at = varint(header, timeAt + 1, SECONDS);
  at = varint(header, at, seconds);
  at = varint(header, at, NANOS);
  at = varint(header, at, Math.trunc((timeMs - seconds * 1000) * 1e6));
  header[timeAt] = at - timeAt - 1;
  at = varint(header, at, OUTPUT);
  at = varint(header, at, bytes.length);
  return joined(header.subarray(0, at), bytes);
}

/**
 * Joins a message of two parts without a copy, which would cost a tenth of the throughput: grpc-js asks a message for its
 * length, has it copy itself behind the frame's header, and does no more with it.
 */
function joined(head: Buffer, tail: Buffer): Buffer {
  const { length } = head;
  const copyHead = head.copy.bind(head);
  return Object.defineProperties(head, {
    byteLength: { value: length + tail.length },
    copy: { value: (to: Buffer, at: number) => copyHead(to, at, 0, length) + tail.copy(to, at + length) },
  });
}

/** Writes a whole number from 0 to 2^53-1 and returns where the next byte goes. */
function varint(into: Buffer, at: number, value: number): number {
  let rest = value;
  let end = at;
  while (rest >= 0x80) {
    into[end++] = (rest % 0x80) | 0x80;
    rest = Math.floor(rest / 0x80);
  }
  into[end++] = rest;
  return end;
}
