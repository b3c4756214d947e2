import { reasonOf } from "../../os/errno.ts";
import { JobError } from "../errors.ts";

/* Where the logs of ended jobs go when they leave this disk. */

/** Where archived files are. */
export type Place =
  /** A directory that is there: it is not made, since what it is on may not be mounted. */
  | { readonly kind: "directory"; readonly path: string }
  | {
      readonly kind: "s3";
      readonly bucket: string;
      /** In front of each key, without a slash at its end; may be empty. */
      readonly prefix: string;
      /** Of a server that is not AWS's, as in `http://127.0.0.1:9000`; the bucket is then the first part of the path. */
      readonly endpoint?: string;
      /** By the SDK's own rules when absent; us-east-1 with an endpoint. */
      readonly region?: string;
      /** A connection on which nothing moves is given up after it; 30 s when absent. */
      readonly silenceMs?: number;
    };

/** A file in the archive. */
export interface Stored extends AsyncDisposable {
  readonly size: number;
  /** Fills `buffer` from `offset` on, as far as the file reaches. Throws JobError `unavailable`. */
  read(buffer: Buffer, offset: number): Promise<number>;
}

/** Keys are paths of three parts: `WORKER/JOB/FILE`. */
export interface Store extends Disposable {
  /** Where it is, for people. */
  readonly place: string;
  /**
   * Copies a file. Resolves once what is stored has been found to be what is on this disk, by checksum; what a try
   * that was cut has left is put away or written over. Throws whatever kept it from that.
   */
  put(key: string, path: string, signal: AbortSignal): Promise<void>;
  /** Whether there is such a file. Throws whatever keeps it from being known. */
  has(key: string, signal: AbortSignal): Promise<boolean>;
  /** Throws JobError `unavailable`; so do its reads, which `signal` ends. */
  open(key: string, signal: AbortSignal): Promise<Stored>;
}

/** Of an archive that does not give a file out. */
export function unavailable(key: string, error: unknown): JobError {
  return new JobError("unavailable", `the archive does not give ${key}: ${reasonOf(error)}`, {
    reason: "archive-unavailable",
    cause: error,
  });
}
