import { reasonOf } from "../../os/errno.ts";
import { JobError } from "../model/errors.ts";

/* Where the logs of ended jobs go when they leave this disk. */

/** A file in the archive. */
export interface Stored extends AsyncDisposable {
  readonly size: number;
  /** Fills `buffer` from `offset` on, as far as the file reaches. Throws JobError `unavailable`. */
  read(buffer: Buffer, offset: number): Promise<number>;
}

/** Keys are paths of three parts: `WORKER/JOB/FILE`. */
export interface Store extends Disposable {
  /** The place of the store, for people. */
  readonly place: string;
  /**
   * Copies a file. Resolves once what is stored has been found to be what is on this disk, by checksum; what a try
   * that was cut has left is put away or written over. Throws whatever kept it from that.
   */
  put(key: string, path: string, signal: AbortSignal): Promise<void>;
  /** Whether there is such a file. Throws whatever keeps it from being known. */
  has(key: string, signal: AbortSignal): Promise<boolean>;
  /** Removes the files of a directory, `WORKER/JOB`, as far as they are there. Throws whatever keeps one of them there. */
  remove(directory: string, files: readonly string[], signal: AbortSignal): Promise<void>;
  /** Throws JobError `unavailable`; so do its reads, which `signal` ends. */
  open(key: string, signal: AbortSignal): Promise<Stored>;
}

/** Makes the error for a file that the archive does not give out. */
export function unavailable(key: string, error: unknown): JobError {
  return new JobError("unavailable", `the archive does not give ${key}: ${reasonOf(error)}`, {
    reason: "archive-unavailable",
    cause: error,
  });
}
