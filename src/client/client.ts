import type {
  ExamineResponse,
  ListRequest,
  ListResponse,
  QueryResponse,
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
import type { CallOptions } from "./calls.ts";
import type { Connections } from "./connections.ts";

type Partially<Type extends { fromPartial: (part: never) => unknown }> = Parameters<Type["fromPartial"]>[0];

/** A request may leave out what it does not set. */
export type StartInput = Partially<typeof StartRequest>;
export type StopInput = Partially<typeof StopRequest>;
export type ListInput = Partially<typeof ListRequest>;
export type StreamInput = Partially<typeof StreamRequest>;
export type UpdateInput = Partially<typeof UpdateRequest>;
export type StatsInput = Partially<typeof StatsRequest>;

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
  /** The newest message each time: a slow consumer skips those before it. Leaving the loop cancels. */
  stats(request: StatsInput, options?: CallOptions): AsyncGenerator<StatsResponse, void, void>;
  close(): void;
}
