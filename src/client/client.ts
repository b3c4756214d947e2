import type {
  ExamineResponse,
  ListRequest,
  ListResponse,
  PruneRequest,
  PruneResponse,
  QueryResponse,
  RemoveRequest,
  RemoveResponse,
  StartRequest,
  StartResponse,
  StatsRequest,
  StatsResponse,
  StopRequest,
  StopResponse,
  StreamRequest,
  StreamResponse,
  UpdateRequest,
  UpdateResponse,
  WaitResponse,
} from "../../proto/generated/jobs/v1/worker.ts";
import type { TlsPem } from "../x509/pem.ts";

/* The library's interface. No file that this one imports names a type of a package: the declarations stand alone. */

/** Options of one call. */
export interface CallOptions {
  /** Gives up: the call rejects with CANCELLED. What it asked for may have been done. */
  readonly signal?: AbortSignal | undefined;
  /** Gives up after so long: DEADLINE_EXCEEDED. Absent: never. */
  readonly timeoutMs?: number | undefined;
}

/**
 * The worker to call, and the proof of who calls: the CA's certificate, an own certificate with its chain, and its key,
 * in PEM or DER.
 */
export interface Credentials extends TlsPem {
  /** `HOST:PORT`: a name, an IPv4 address, or an IPv6 address in brackets. */
  readonly server: string;
}

/** The connections that a client has had. */
export interface Connections {
  /** A connection counts once the worker has accepted it. */
  readonly count: number;
  /** Whether there is one now. */
  readonly up: boolean;
  /** Resolves at the next one; never when there is none. */
  next(): Promise<void>;
}

/** A message of which any field may be left out; a 64-bit number may be given as a number. */
type DeepPartial<Message> = Message extends bigint
  ? string | number | bigint
  : Message extends Date | Uint8Array | ReadonlyMap<unknown, unknown> | string | number | boolean | undefined
    ? Message
    : Message extends (infer Element)[]
      ? DeepPartial<Element>[]
      : Message extends { $case: string; value: unknown }
        ? { $case: Message["$case"]; value?: DeepPartial<Message["value"]> }
        : { [Field in keyof Message]?: DeepPartial<Message[Field]> };

/** A request may leave out what it does not set. */
export type StartInput = DeepPartial<StartRequest>;
export type StopInput = DeepPartial<StopRequest>;
export type ListInput = DeepPartial<ListRequest>;
export type StreamInput = DeepPartial<StreamRequest>;
export type UpdateInput = DeepPartial<UpdateRequest>;
export type RemoveInput = DeepPartial<RemoveRequest>;
export type PruneInput = DeepPartial<PruneRequest>;
export type StatsInput = DeepPartial<StatsRequest>;

/** A worker, as worker.proto has it. Every method throws ClientError; `using` or close() lets go of the connection. */
export interface Client extends Disposable {
  readonly connections: Connections;
  start(request: StartInput, options?: CallOptions): Promise<StartResponse>;
  stop(request: StopInput, options?: CallOptions): Promise<StopResponse>;
  query(jobId: string, options?: CallOptions): Promise<QueryResponse>;
  list(request?: ListInput, options?: CallOptions): Promise<ListResponse>;
  wait(jobId: string, options?: CallOptions): Promise<WaitResponse>;
  examine(options?: CallOptions): Promise<ExamineResponse>;
  /** Messages are read only as they are asked for, so a slow consumer holds back the worker; leaving the loop cancels. */
  stream(request: StreamInput, options?: CallOptions): AsyncGenerator<StreamResponse, void, void>;
  update(request: UpdateInput, options?: CallOptions): Promise<UpdateResponse>;
  remove(request: RemoveInput, options?: CallOptions): Promise<RemoveResponse>;
  /** Yields the ids of removed jobs, some at a time. Leaving the loop ends the pruning. */
  prune(request: PruneInput, options?: CallOptions): AsyncGenerator<PruneResponse, void, void>;
  /** The newest message each time: a slow consumer skips those before it. Leaving the loop cancels. */
  stats(request: StatsInput, options?: CallOptions): AsyncGenerator<StatsResponse, void, void>;
  close(): void;
}
