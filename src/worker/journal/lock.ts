import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { reasonOf } from "../../os/errno.ts";
import { JobError } from "../model/errors.ts";
import { makePrivate } from "../system/file.ts";

/**
 * Keeps every other process from the state directory until disposed, whatever becomes of the journal in it. Node has no
 * flock(2); SQLite takes fcntl(2)'s locks, and the kernel lets go of them with the process. The file stays empty. Throws JobError `unavailable`, with `reason: "locked"` when somebody has it.
 */
export function lockDirectory(stateDir: string): Disposable {
  const path = join(stateDir, "lock");
  let database: DatabaseSync | undefined;
  try {
    makePrivate(path);
    database = new DatabaseSync(path);
    database.exec("PRAGMA journal_mode = MEMORY; BEGIN EXCLUSIVE");
  } catch (error) {
    database?.close();
    const message = reasonOf(error);
    throw /locked|busy/.test(message)
      ? lockedBy(path, error)
      : new JobError("unavailable", `the state directory cannot be used: ${path}: ${message}`, { cause: error });
  }
  const held = database;
  return { [Symbol.dispose]: () => held.close() };
}

/** Makes the error for a file that another process has locked. */
export function lockedBy(path: string, cause: unknown): JobError {
  return new JobError("unavailable", `another jobsd uses the state directory (${path} is locked)`, {
    facts: { reason: "locked" },
    cause,
  });
}
