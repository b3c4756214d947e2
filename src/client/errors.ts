/** A gRPC status by name: google.rpc.Code tells what each is for. */
export type Code =
  | "OK"
  | "CANCELLED"
  | "UNKNOWN"
  | "INVALID_ARGUMENT"
  | "DEADLINE_EXCEEDED"
  | "NOT_FOUND"
  | "ALREADY_EXISTS"
  | "PERMISSION_DENIED"
  | "RESOURCE_EXHAUSTED"
  | "FAILED_PRECONDITION"
  | "ABORTED"
  | "OUT_OF_RANGE"
  | "UNIMPLEMENTED"
  | "INTERNAL"
  | "UNAVAILABLE"
  | "DATA_LOSS"
  | "UNAUTHENTICATED";

interface ClientErrorOptions {
  readonly reason?: string | undefined;
  readonly field?: string | undefined;
  readonly facts?: Readonly<Record<string, string>> | undefined;
  readonly cause?: unknown;
}

/** The one error of the client: a code for programs, a message for people. */
export class ClientError extends Error {
  override readonly name = "ClientError";
  readonly code: Code;
  /** UPPER_SNAKE_CASE, finer than the code; empty when the worker gave none (google.rpc.ErrorInfo). */
  readonly reason: string;
  /** The request's field that is wrong, as in `resources.memory.limit`. */
  readonly field: string | undefined;
  /** Facts for a program, such as `{ stage: "exec", errno: "ENOENT" }`. */
  readonly facts: Readonly<Record<string, string>>;

  constructor(code: Code, message: string, options: ClientErrorOptions = {}) {
    super(message, { cause: options.cause });
    this.code = code;
    this.reason = options.reason ?? "";
    this.field = options.field;
    this.facts = options.facts ?? {};
  }
}
