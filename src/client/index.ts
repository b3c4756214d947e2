import { connectivityState, Metadata } from "@grpc/grpc-js";
import {
  ListRequest,
  PruneRequest,
  RemoveRequest,
  StartRequest,
  StatsRequest,
  StopRequest,
  StreamRequest,
  UpdateRequest,
  WorkerServiceClient,
} from "../../proto/generated/jobs/v1/worker.ts";
import { readTraceParent, writeTraceParent } from "../os/traceparent.ts";
import { messages, newest, unary, type Watch } from "./calls.ts";
import type { CallOptions, Client, Credentials } from "./client.ts";
import { watchConnections } from "./connections.ts";
import { ClientError } from "./errors.ts";
import { channelFor, formatTarget, parseTarget, secureContext } from "./target.ts";

export {
  Ending,
  FindingState,
  LogCompression,
  LogKeep,
  LogPlace,
  Network,
  Source,
  State,
} from "../../proto/generated/jobs/v1/worker.ts";
export type {
  Ended,
  ExamineResponse,
  Finding,
  Job,
  ListResponse,
  PruneResponse,
  QueryResponse,
  RemoveResponse,
  StartResponse,
  StatsResponse,
  StopResponse,
  StreamResponse,
  UpdateResponse,
  Usage,
  WaitResponse,
} from "../../proto/generated/jobs/v1/worker.ts";
export type * from "./client.ts";
export { ClientError };
export { reopening, resuming, retrying, type RetryOptions } from "./resume.ts";

export interface ConnectOptions extends Credentials {
  /** A call fails as UNAVAILABLE when there is no connection after so long; 10 s when absent. */
  readonly connectTimeoutMs?: number;
  /** The place in a trace that calls have (w3.org/TR/trace-context): the worker records it, and hands it to jobs as TRACEPARENT. */
  readonly traceparent?: string | undefined;
}

const CONNECT_TIMEOUT_MS = 10_000;

/** Per stream, in bytes: at the default of 64 KiB a stream over TLS runs at a quarter of its speed. */
const WINDOW_BYTES = 4 * 1024 * 1024;

const CHANNEL = {
  "grpc-node.flow_control_window": WINDOW_BYTES,
  "grpc.max_receive_message_length": 8 * 1024 * 1024,
  // A follower may wait for days: without pings it would not learn that the worker's host is gone.
  "grpc.keepalive_time_ms": 30_000,
  "grpc.keepalive_timeout_ms": 10_000,
  "grpc.initial_reconnect_backoff_ms": 200,
  "grpc.max_reconnect_backoff_ms": 3_000,
  // Neither a proxy of the web nor a TXT record of the name has a say in where a worker is.
  "grpc.enable_http_proxy": 0,
  "grpc.service_config_disable_resolution": 1,
  "grpc.enable_channelz": 0,
};

/**
 * A client of one worker; the connection is made by the first call. Throws ClientError INVALID_ARGUMENT when `server`
 * is not an address or `traceparent` is not one, UNAUTHENTICATED when the credentials are no PEM or the key does not belong to the certificate.
 */
export function connect(options: ConnectOptions): Client {
  const target = parseTarget(options.server);
  const channel = channelFor(secureContext(options), target);
  const grpc = new WorkerServiceClient(formatTarget(target), channel.credentials, { ...CHANNEL, ...channel.options });
  const watch = connecting(grpc, options);
  const metadata = metadataOf(options);
  const close = (): void => grpc.close();
  return {
    connections: watchConnections(grpc.getChannel()),
    start: (request, call = {}) =>
      unary(
        (done) => grpc.start(StartRequest.fromPartial(request), metadata, deadline(call), done),
        call.signal,
        watch,
      ),
    stop: (request, call = {}) =>
      unary((done) => grpc.stop(StopRequest.fromPartial(request), metadata, deadline(call), done), call.signal, watch),
    query: (jobId, call = {}) =>
      unary((done) => grpc.query({ jobId }, metadata, deadline(call), done), call.signal, watch),
    list: (request = {}, call = {}) =>
      unary((done) => grpc.list(ListRequest.fromPartial(request), metadata, deadline(call), done), call.signal, watch),
    wait: (jobId, call = {}) =>
      unary((done) => grpc.wait({ jobId }, metadata, deadline(call), done), call.signal, watch),
    examine: (call = {}) => unary((done) => grpc.examine({}, metadata, deadline(call), done), call.signal, watch),
    stream: (request, call = {}) =>
      messages(() => grpc.stream(StreamRequest.fromPartial(request), metadata, deadline(call)), call.signal, watch),
    update: (request, call = {}) =>
      unary(
        (done) => grpc.update(UpdateRequest.fromPartial(request), metadata, deadline(call), done),
        call.signal,
        watch,
      ),
    remove: (request, call = {}) =>
      unary(
        (done) => grpc.remove(RemoveRequest.fromPartial(request), metadata, deadline(call), done),
        call.signal,
        watch,
      ),
    prune: (request, call = {}) =>
      messages(() => grpc.prune(PruneRequest.fromPartial(request), metadata, deadline(call)), call.signal, watch),
    stats: (request, call = {}) =>
      newest(
        (signal) =>
          messages(() => grpc.stats(StatsRequest.fromPartial(request), metadata, deadline(call)), signal, watch),
        call.signal,
      ),
    close,
    [Symbol.dispose]: close,
  };
}

function metadataOf({ traceparent }: ConnectOptions): Metadata {
  const metadata = new Metadata();
  if (traceparent === undefined) return metadata;
  const parent = readTraceParent(traceparent);
  if (!parent)
    throw new ClientError(
      "INVALID_ARGUMENT",
      `${JSON.stringify(traceparent)} is not a traceparent of W3C Trace Context`,
    );
  metadata.set("traceparent", writeTraceParent(parent));
  return metadata;
}

function deadline({ timeoutMs }: CallOptions): { deadline?: number } {
  return timeoutMs === undefined ? {} : { deadline: Date.now() + timeoutMs };
}

/**
 * Gives a call up when there is no connection in time. The kernel would wait two minutes for a host that does not answer.
 */
function connecting(
  grpc: WorkerServiceClient,
  { server, connectTimeoutMs = CONNECT_TIMEOUT_MS }: ConnectOptions,
): Watch {
  const connected = (): boolean => grpc.getChannel().getConnectivityState(false) === connectivityState.READY;
  return (call) => {
    if (connected()) return () => undefined;
    let error: ClientError | undefined;
    const timer = setTimeout(() => {
      if (connected()) return;
      error = new ClientError("UNAVAILABLE", `no connection to ${server} within ${connectTimeoutMs / 1000} s`);
      call.cancel();
    }, connectTimeoutMs);
    return () => {
      clearTimeout(timer);
      return error;
    };
  };
}
