import { randomUUID } from "node:crypto";
import {
  type handleBidiStreamingCall,
  type handleServerStreamingCall,
  type handleUnaryCall,
  type Metadata,
  ServerInterceptingCall,
  type ServerInterceptor,
  type ServerListener,
  type ServerDuplexStream,
  type ServerWritableStream,
  status,
} from "@grpc/grpc-js";
import type { Logger } from "pino";
import type { TraceParent } from "../os/traceparent.ts";
import { JobError } from "../worker/index.ts";
import type { Principal } from "../x509/identity.ts";
import { Denied, type Failure, failureOf, statusOf } from "./status.ts";
import { TRACEPARENT, traceParentIn } from "./tracing.ts";

// An exception in an interceptor, or a rejection in a handler, would end the process: grpc-js catches neither. All that it
// calls goes through this file, which answers INTERNAL with the id of a line in the log, and tells the client nothing else.

/** Turns whatever was thrown into an answer. An error that is not the request's is logged; its answer has only an id. */
export function explain(error: unknown, log: Logger, method: string): Failure {
  const known = failureOf(error);
  if (known) return known;
  const correlationId = randomUUID();
  log.error({ err: error, method, correlationId }, "call failed");
  const message = `internal error; the worker's log has it under ${correlationId}`;
  return { code: status.INTERNAL, reason: "INTERNAL", message, facts: { correlation_id: correlationId } };
}

export type Call = Parameters<ServerInterceptor>[1];
export type Method = Parameters<ServerInterceptor>[0];
type Outbound = Parameters<Call["sendStatus"]>[0];

/** Hooks of an interceptor in one call. Each hook has to call `next` for the call to go on. */
export interface Hooks {
  readonly start?: (next: (listener?: ServerListener) => void) => void;
  readonly sendMessage?: (message: unknown, next: (message: unknown) => void) => void;
  readonly sendStatus?: (outbound: Outbound, next: (outbound: Outbound) => void) => void;
}

/** Makes an interceptor; what one of its hooks or listeners throws ends that call, and nothing else. */
export function guardedInterceptor(hooksFor: (method: Method, call: Call) => Hooks, log: Logger): ServerInterceptor {
  return (method, call) => {
    const guarded =
      <A extends unknown[]>(run: (...args: A) => void) =>
      (...args: A): void => {
        try {
          run(...args);
        } catch (error) {
          call.sendStatus(statusOf(explain(error, log, method.path)));
        }
      };
    let hooks: Hooks;
    try {
      hooks = hooksFor(method, call);
    } catch (error) {
      hooks = {
        start() {
          throw error;
        },
      };
    }
    const { start = (next) => next(), sendMessage = pass, sendStatus = pass } = hooks;
    return new ServerInterceptingCall(call, {
      start: guarded((next) => start((listener) => next(listener && guardedListener(listener, guarded)))),
      sendMetadata: pass,
      sendMessage: guarded(sendMessage),
      sendStatus: guarded(sendStatus),
    });
  };
}

function pass<T>(value: T, next: (value: T) => void): void {
  next(value);
}

function guardedListener(
  listener: ServerListener,
  guarded: <A extends unknown[]>(run: (...args: A) => void) => (...args: A) => void,
): ServerListener {
  const { onReceiveMetadata, onReceiveMessage, onReceiveHalfClose, onCancel } = listener;
  return {
    ...(onReceiveMetadata && { onReceiveMetadata: guarded(onReceiveMetadata) }),
    ...(onReceiveMessage && { onReceiveMessage: guarded(onReceiveMessage) }),
    ...(onReceiveHalfClose && { onReceiveHalfClose: guarded(onReceiveHalfClose) }),
    ...(onCancel && { onCancel: guarded(onCancel) }),
  };
}

/** Context that a handler has of its call beside the request. */
export interface CallContext {
  readonly principal: Principal;
  /** Aborted when the client has gone, when the deadline has passed, and for handlers that last when the server shuts down. */
  readonly signal: AbortSignal;
  /** The place of the call in a trace; undefined when the client said nothing of one. */
  readonly parent: TraceParent | undefined;
  /** Runs a piece of work in a turn of the client's: long work is done in pieces. */
  readonly turn: <T>(work: () => T) => Promise<T>;
}

/** The client of a call. */
export interface Caller {
  readonly principal: Principal;
  /** Tells why the client may call no more; undefined while it may. */
  readonly denied: () => Failure | undefined;
  /** Takes a turn for work that has begun: see Turns. */
  readonly take: (work: () => boolean) => void;
}

export interface Handlers {
  /** Makes a unary method of a function; `lasts` says that it may take longer than a shutdown should. */
  readonly unary: <Q, S>(
    run: (request: Q, context: CallContext) => S | Promise<S>,
    lasts?: "lasts",
  ) => handleUnaryCall<Q, S>;
  /** Makes a server stream of a function; the stream ends when the function has ended. */
  readonly streaming: <Q, S>(
    run: (call: ServerWritableStream<Q, S>, context: CallContext) => Promise<void>,
  ) => handleServerStreamingCall<Q, S>;
  /** Makes a stream in both directions of a function, likewise. Each request is to be read by `readable`. */
  readonly duplex: <Q, S>(
    run: (call: ServerDuplexStream<Q, S>, context: CallContext) => Promise<void>,
  ) => handleBidiStreamingCall<Q, S>;
  /** Ends every call that lasts, with UNAVAILABLE. */
  readonly end: () => void;
  /** Ends every call that lasts whose client may call no more. */
  readonly endDenied: () => void;
}

/** What unary calls and streams have in common. */
interface AnyCall {
  readonly metadata: Metadata;
  getPath(): string;
  on(event: "cancelled", listener: () => void): unknown;
}

interface AnyStream extends AnyCall {
  end(): unknown;
  emit(event: "error", outbound: ReturnType<typeof statusOf>): boolean;
}

/** Returns a request, or throws the error that stands for a request which could not be decoded: requests.ts. */
export function readable<Request>(request: Request): Request {
  if (request instanceof JobError) throw request;
  return request;
}

/**
 * Makes handlers for grpc-js of plain functions. What a function throws becomes the call's status.
 *
 * @param callers the clients that the interceptor `authorise` let in, by the call's metadata
 */
export function handlers(callers: Pick<WeakMap<Metadata, Caller>, "get">, log: Logger): Handlers {
  const lasting = new Map<AbortController, Caller>();
  let ended = false;
  const gone = new JobError("unavailable", "the worker is shutting down; its jobs keep running, try again");

  async function run<T>(
    call: AnyCall,
    lasts: boolean,
    body: (context: CallContext) => T | Promise<T>,
    answer: { ok(value: T): void; failed(outbound: ReturnType<typeof statusOf>): void },
  ): Promise<void> {
    const cancel = new AbortController();
    let answered = false;
    call.on("cancelled", () => {
      // grpc-js emits this at the end of every call, and an error takes time to make.
      if (!answered) cancel.abort(new JobError("unavailable", "the client has gone"));
    });
    try {
      if (lasts && ended) throw gone;
      const caller = callers.get(call.metadata);
      if (!caller) throw new Error("a handler was reached without authorisation");
      if (lasts) lasting.set(cancel, caller);
      const parent = traceParentIn(call.metadata.get(TRACEPARENT));
      const value = body({ principal: caller.principal, signal: cancel.signal, parent, turn: turnOf(caller) });
      // A value that is there already is answered in this turn of the client's.
      answer.ok(value instanceof Promise ? await value : value);
    } catch (error) {
      // The abort ended the handler, whatever the handler threw.
      const cause: unknown = cancel.signal.aborted ? cancel.signal.reason : error;
      answer.failed(statusOf(explain(cause, log, call.getPath())));
    } finally {
      answered = true;
      lasting.delete(cancel);
    }
  }

  function stream(call: AnyStream, body: (context: CallContext) => Promise<void>): void {
    void run(call, true, body, { ok: () => call.end(), failed: (outbound) => call.emit("error", outbound) });
  }

  return {
    unary: (body, lasts) => (call, callback) => {
      void run(call, lasts !== undefined, (context) => body(readable(call.request), context), {
        ok: (value) => callback(null, value),
        failed: (outbound) => callback(outbound),
      });
    },
    streaming: (body) => (call) =>
      stream(call, (context) => {
        readable(call.request);
        return body(call, context);
      }),
    duplex: (body) => (call) => stream(call, (context) => body(call, context)),
    end() {
      ended = true;
      for (const cancel of lasting.keys()) cancel.abort(gone);
    },
    endDenied: () => endDenied(lasting),
  };
}

function endDenied(lasting: ReadonlyMap<AbortController, Caller>): void {
  for (const [cancel, { denied }] of lasting) {
    const failure = denied();
    if (failure) cancel.abort(new Denied(failure));
  }
}

function turnOf({ take }: Caller): CallContext["turn"] {
  return (work) =>
    new Promise((resolve, reject) => {
      take(() => {
        try {
          resolve(work());
        } catch (error) {
          reject(error);
        }
        return true;
      });
    });
}
