/**
 * What went wrong, for a program: `invalid` the request is wrong (see `field`), `not-found` no such job, `pruned` its
 * output was removed by a limit (facts: bytes, since, why),
 * `forbidden` this worker does not allow it, `unsupported` this host cannot do it, `exhausted` no room for it now,
 * `precondition` the job is not as the call needs it, `unavailable` the worker is closing, `data-loss` its output cannot
 * be read, `internal` anything else.
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
  /** Finer than the code, in its form: what is not available, when waiting for it is of no use. */
  readonly reason?: "archive-unavailable" | "journal-unavailable";
  /** The field of the request that is wrong, as in `resources.memory.limit`. */
  readonly field?: string;
  /** Machine-readable facts, as in `{ stage: "exec", errno: "ENOENT" }`. */
  readonly facts?: Readonly<Record<string, string>>;
  readonly cause?: unknown;
}

/** The one error that the worker throws: a code for programs, a message that says what would be right. */
export class JobError extends Error {
  override readonly name = "JobError";
  readonly code: JobErrorCode;
  readonly reason: JobErrorOptions["reason"];
  readonly field: string | undefined;
  readonly facts: Readonly<Record<string, string>>;

  constructor(code: JobErrorCode, message: string, options: JobErrorOptions = {}) {
    super(message, { cause: options.cause });
    this.code = code;
    this.reason = options.reason;
    this.field = options.field;
    this.facts = options.facts ?? {};
  }
}

const MOST_QUOTED = 100;

/** A request's field is wrong: `invalid("cwd", "must be an absolute path")`. */
export function invalid(field: string, message: string, facts?: Readonly<Record<string, string>>): JobError {
  return new JobError("invalid", `${field}: ${message}`, { field, ...(facts && { facts }) });
}

/** A text of the request in a message: its beginning, so that what is wrong with it is never cut off behind it. */
export function quoted(text: string): string {
  return JSON.stringify(text.length > MOST_QUOTED ? `${text.slice(0, MOST_QUOTED)}…` : text);
}

export function notFound(id: string): JobError {
  return new JobError("not-found", `there is no job ${quoted(id)}`, { field: "job_id" });
}
