import { constants } from "node:os";

/** Returns the name of the errno that a system call ended with, as in `ENOENT`; `unknown` for any other error. */
export function codeOf(error: unknown): string {
  if (!(error instanceof Error) || !("code" in error)) return "unknown";
  const code = String(error.code);
  // Node has no name for EDQUOT, among others.
  const errno = /^Unknown system error -(\d+)$/.exec(code)?.[1];
  if (errno === undefined) return code;
  return Object.entries(constants.errno).find(([, number]) => number === Number(errno))?.[0] ?? code;
}

/** Returns what has gone wrong, in few words: an error's message. */
export function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  // A failed connection to a name with several addresses has no message of its own.
  if (error instanceof AggregateError && error.message === "") return error.errors.map(reasonOf).join(", ");
  return error.message || error.name;
}

/** Returns the system's own words for an error's errno, as in "no such file or directory" for ENOENT. */
export function meaningOf(error: unknown): string {
  const errno = codeOf(error);
  if (errno === "EISDIR") return "is a directory; a file is needed";
  // A static import of node:util makes process.stderr, and so makes a pipe non-blocking that other processes write to.
  const { getSystemErrorMap } = process.getBuiltinModule("node:util");
  return [...getSystemErrorMap().values()].find(([name]) => name === errno)?.[1] ?? String(error);
}
