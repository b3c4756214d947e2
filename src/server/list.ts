import { ListResponse, type ListRequest } from "../../proto/generated/jobs/v1/worker.ts";
import type { Jobs } from "../worker/index.ts";
import type { CallContext } from "./guard.ts";
import { LIST_BYTES, LIST_MS } from "./limits.ts";
import { fromJob, toListFilter } from "./translate.ts";

/** How many jobs are found and serialised in one turn of the event loop, at most. */
const STEP_JOBS = 32;
/** How long a step searches, in ms. */
const STEP_MS = 4;

/**
 * Makes a page of jobs, as a ListResponse on the wire, in steps between which other clients have their turns. The page ends
 * at the limit that was asked for, at LIST_BYTES, or after LIST_MS.
 */
export async function listJobs(jobs: Jobs, request: ListRequest, { turn, signal }: CallContext): Promise<Buffer> {
  const filter = toListFilter(request);
  const beganMs = performance.now();
  const pieces: Uint8Array[] = [];
  let left = filter.limit;
  let bytes = 0;
  let next = filter.pageToken;
  do {
    const pageToken = next;
    const step = (): void => {
      const limit = Math.min(left, STEP_JOBS);
      const found = jobs.list({ ...filter, limit, stepMs: STEP_MS, ...(pageToken !== undefined && { pageToken }) });
      left -= found.jobs.length;
      next = found.nextPageToken;
      // Encoded messages that follow each other are one message: protobuf.dev/programming-guides/encoding, "Last One Wins".
      pieces.push(ListResponse.encode({ jobs: found.jobs.map(fromJob), nextPageToken: "" }).finish());
      bytes += pieces.at(-1)?.length ?? 0;
    };
    await turn(step);
    signal.throwIfAborted();
  } while (next !== undefined && left > 0 && bytes < LIST_BYTES && performance.now() - beganMs < LIST_MS);
  pieces.push(ListResponse.encode({ jobs: [], nextPageToken: next ?? "" }).finish());
  return Buffer.concat(pieces);
}
