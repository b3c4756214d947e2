import { type ClientReadableStream, type ClientUnaryCall, type ServiceError, status } from "@grpc/grpc-js";
import { BadRequest, ErrorInfo, Status } from "../../proto/generated/google/rpc/details.ts";
import { ClientError, type Code } from "./errors.ts";

interface Cancellable {
  cancel(): void;
}

/**
 * Watches a call that begins. The result is called when the call was answered, and returns the error if the watch gave the
 * call up.
 */
export type Watch = (call: Cancellable) => () => ClientError | undefined;

/** A unary call as a promise. Rejects with ClientError. */
export function unary<Response>(
  begin: (callback: (error: ServiceError | null, response: Response) => void) => ClientUnaryCall,
  signal: AbortSignal | undefined,
  watch: Watch,
): Promise<Response> {
  if (signal?.aborted) return Promise.reject(cancelled());
  const { promise, resolve, reject } = Promise.withResolvers<Response>();
  const call = begin((error, response) => {
    signal?.removeEventListener("abort", abort);
    const gaveUp = answered();
    if (error) reject(gaveUp ?? toClientError(error));
    else resolve(response);
  });
  const answered = watch(call);
  const abort = (): void => call.cancel();
  signal?.addEventListener("abort", abort, { once: true });
  return promise;
}

/**
 * A server stream as an async generator: a message is read from the wire only as it is asked for, but for those that
 * the stream's buffer holds. Leaving the loop cancels the call. Throws ClientError.
 */
export async function* messages<Response>(
  begin: () => ClientReadableStream<Response>,
  signal: AbortSignal | undefined,
  watch: Watch,
): AsyncGenerator<Response, void, void> {
  if (signal?.aborted) throw cancelled();
  const call = begin();
  const answered = watch(call);
  call.once("metadata", answered);
  const abort = (): void => call.cancel();
  signal?.addEventListener("abort", abort, { once: true });
  try {
    for await (const message of call) yield message;
  } catch (error) {
    throw answered() ?? toClientError(error);
  } finally {
    signal?.removeEventListener("abort", abort);
    answered();
    call.cancel();
  }
}

/**
 * Reads messages as they come and keeps the newest, so that none is old when it is asked for. Leaving the loop ends them.
 *
 * @param open what is read, until its signal
 */
export async function* newest<Message>(
  open: (signal: AbortSignal) => AsyncGenerator<Message, void, void>,
  signal: AbortSignal | undefined,
): AsyncGenerator<Message, void, void> {
  const left = new AbortController();
  let next = Promise.withResolvers<void>();
  const kept: Message[] = [];
  let over = false;
  const read = async (): Promise<void> => {
    const ends = signal ? AbortSignal.any([signal, left.signal]) : left.signal;
    for await (const message of open(ends)) {
      kept[0] = message;
      next.resolve();
    }
  };
  const reading = read().finally(() => {
    over = true;
    next.resolve();
  });
  reading.catch(() => {}); // it is awaited below
  try {
    for (;;) {
      const [message] = kept.splice(0);
      if (message !== undefined) {
        yield message;
        continue;
      }
      if (over) break;
      next = Promise.withResolvers();
      await next.promise;
    }
    await reading;
  } finally {
    left.abort();
  }
}

function cancelled(): ClientError {
  return new ClientError("CANCELLED", "the call was given up");
}

/** Reads status, details and `grpc-status-details-bin` of what a call failed with. */
function toClientError(error: unknown): ClientError {
  if (!isServiceError(error)) return new ClientError("UNKNOWN", String(error), { cause: error });
  const name = status[error.code];
  const code: Code = isCode(name) ? name : "UNKNOWN";
  return new ClientError(code, error.details || error.message, { ...richDetails(error), cause: error });
}

function richDetails(error: ServiceError): { reason?: string; field?: string; facts?: Record<string, string> } {
  const [packed] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (!(packed instanceof Buffer)) return {};
  const found: { reason?: string; field?: string; facts?: Record<string, string> } = {};
  try {
    for (const { typeUrl, value } of Status.decode(packed).details) {
      if (typeUrl.endsWith("/google.rpc.ErrorInfo")) {
        const { reason, metadata } = ErrorInfo.decode(value);
        found.reason = reason;
        found.facts = Object.fromEntries(metadata);
      } else if (typeUrl.endsWith("/google.rpc.BadRequest")) {
        const [violation] = BadRequest.decode(value).fieldViolations;
        if (violation) found.field = violation.field;
      }
    }
  } catch {
    // Details are optional: the status is still valid when they cannot be read.
  }
  return found;
}

function isCode(name: string | undefined): name is Code {
  return name !== undefined && name in status;
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && typeof error.code === "number" && "details" in error;
}
