/**
 * What went wrong, for a program:
 * - `invalid`: the request is wrong; see `field`.
 * - `not-found`: there is no such job.
 * - `pruned`: the output was removed by a limit; facts: bytes, since, why.
 * - `forbidden`: this worker does not allow it.
 * - `unsupported`: this host cannot do it.
 * - `exhausted`: there is no room for it now.
 * - `precondition`: the job is not in the state that the call needs.
 * - `unavailable`: the worker is closing.
 * - `data-loss`: the output cannot be read.
 * - `internal`: anything else.
 */
export type JobErrorCode =
  | "invalid"
  | "not-found"
  | "pruned"
  | "forbidden"
  | "unsupported"
  | "exhausted"
  | "precondition"
  | "unavailable"
  | "data-loss"
  | "internal";

interface JobErrorOptions {
  /**
   * More than the code says. Of `unavailable`: what is not available, and will not be if the caller waits. Of `not-found`: the
   * job was there when the call began.
   */
  readonly reason?: "archive-unavailable" | "journal-unavailable" | "removed";
  /** The field of the request that is wrong, such as `resources.memory.limit`. */
  readonly field?: string;
  /** Machine-readable facts, such as `{ stage: "exec", errno: "ENOENT" }`. */
  readonly facts?: Readonly<Record<string, string>>;
  /** Why the caller may not do that, for the audit log alone: the caller is told of the code and the message. */
  readonly denied?: string | undefined;
  readonly cause?: unknown;
}

/** The only error that the worker throws: a code for programs, and a message that says what would be right. */
export class JobError extends Error {
  override readonly name = "JobError";
  readonly code: JobErrorCode;
  readonly reason: JobErrorOptions["reason"];
  readonly field: string | undefined;
  readonly facts: Readonly<Record<string, string>>;
  readonly denied: string | undefined;

  constructor(code: JobErrorCode, message: string, options: JobErrorOptions = {}) {
    super(message, { cause: options.cause });
    this.code = code;
    this.reason = options.reason;
    this.field = options.field;
    this.facts = options.facts ?? {};
    this.denied = options.denied;
  }
}

const MOST_QUOTED = 100;

type Facts = JobErrorOptions["facts"];

/** An error for a wrong field of a request: `invalid("cwd", "must be an absolute path")`. */
export function invalid(field: string, message: string, facts: Facts = {}): JobError {
  return new JobError("invalid", `${field}: ${message}`, { field, facts });
}

/** An error for a field of a request that asks for what this host, or its worker, does not have. */
export function unsupported(field: string, message: string, facts: Facts = {}): JobError {
  return new JobError("unsupported", `${field}: ${message}`, { field, facts });
}

/** An error for a field of a request that asks for what this worker does not allow. */
export function forbidden(field: string, message: string): JobError {
  return new JobError("forbidden", `${field}: ${message}`, { field });
}

/** The beginning of a text, in quotes, so that the message behind it stays in sight. */
export function quoted(text: string): string {
  return JSON.stringify(text.length > MOST_QUOTED ? `${text.slice(0, MOST_QUOTED)}…` : text);
}

export function notFound(id: string, denied?: string): JobError {
  return new JobError("not-found", `there is no job ${quoted(id)}`, { field: "job_id", denied });
}
