import { codeOf, reasonOf } from "../../os/errno.ts";
import { JobError } from "./errors.ts";

/* Errors for what the disk, the kernel or the journal refuses. */

/** Errnos of a disk that cannot be written at the moment. */
export const FAILING = new Set(["EIO", "EROFS"]);
/** Result codes of SQLite for such a disk (sqlite.org/rescode.html): NOMEM, READONLY, IOERR, FULL, CANTOPEN. */
const SQLITE_FAILING = new Set([7, 8, 10, 13, 14]);
export const EXHAUSTED = new Set(["EAGAIN", "ENOMEM", "EMFILE", "ENFILE", "ENOSPC", "EDQUOT"]);

/** The error for a limit that the kernel refused, with field, file, value and errno. */
export function notWritten(
  { file, value, field }: { readonly file: string; readonly value: string; readonly field: string | undefined },
  cause: unknown,
): JobError {
  const errno = codeOf(cause);
  if (errno === "EMFILE" || errno === "ENFILE")
    return new JobError("exhausted", `no descriptor is left to write ${file} with (${errno})`, {
      facts: { errno },
      cause,
    });
  return new JobError("unsupported", `the kernel refused ${value} for ${file} (${errno})`, {
    ...(field !== undefined && { field }),
    facts: { stage: "cgroup", file, value, errno },
    cause,
  });
}

/** Whether an error of SQLite comes from a disk that is full, fails, or is read-only. */
export function isFailing(error: unknown): boolean {
  return error instanceof Error && "errcode" in error && SQLITE_FAILING.has(Number(error.errcode) & 0xff);
}

/** The JobError for whatever made a start fail. */
export function refusal(error: unknown): JobError {
  if (error instanceof JobError) return error;
  const code = codeOf(error);
  const message = reasonOf(error);
  if (isFailing(error))
    return new JobError("exhausted", `the journal takes no record of another job: ${message}`, {
      facts: { stage: "journal", errno: code },
      cause: error,
    });
  return EXHAUSTED.has(code) || FAILING.has(code)
    ? new JobError("exhausted", `no room for another job on this host: ${message}`, {
        facts: { errno: code },
        cause: error,
      })
    : new JobError("internal", `the job could not be started: ${message}`, { facts: { errno: code }, cause: error });
}

/** The error for output that could not be opened, watched or read. Anything but a failed system call is returned unchanged. */
export function unreadable(id: string, error: unknown): unknown {
  const errno = codeOf(error);
  if (!(error instanceof Error) || !("syscall" in error)) return error;
  const facts = { errno };
  return EXHAUSTED.has(errno)
    ? new JobError("exhausted", `no room for another reader on this host: ${error.message}`, { facts, cause: error })
    : new JobError("data-loss", `the output of ${id} cannot be read: ${error.message}`, { facts, cause: error });
}
