import type { Client } from "../../src/client/index.ts";
import type { ClientError } from "../../src/client/errors.ts";
import { retrying } from "../../src/client/resume.ts";
import { say } from "./output.ts";

/** Long enough for a worker's host to boot. */
const LIMIT_MS = 5 * 60_000;
const QUERY_TIMEOUT_MS = 30_000;

/** Asks for the job once. Throws ClientError, so that a mistake is not taken for a connection that broke. */
export async function checkJob(client: Client, jobId: string): Promise<void> {
  await retrying(client, () => client.query(jobId, { timeoutMs: QUERY_TIMEOUT_MS }), riding(client));
}

export interface RidingOptions {
  /** The same as in RetryOptions; 0 when absent, so that a worker that was never reached is an error at once. */
  readonly firstLimitMs?: number;
  /** Tells nothing, because another call tells of the outage. */
  readonly quiet?: boolean;
  /** Called before anything is told. */
  readonly before?: () => void;
}

/** Returns options for a call that continues when the worker comes back. Each outage is told of once. */
export function riding(
  { connections }: Client,
  { firstLimitMs = 0, quiet = false, before }: RidingOptions = {},
): Riding {
  const tell = (message: string): void => {
    if (quiet) return;
    before?.();
    say(message);
  };
  return {
    limitMs: LIMIT_MS,
    firstLimitMs,
    onRetry(error, attempt) {
      if (attempt === 1 && connections.count > 0) tell(`connection lost (${error.message}); connecting again`);
    },
    onResume(offset) {
      if (connections.count > 1) tell(`connected again${offset === undefined ? "" : `, going on at offset ${offset}`}`);
    },
  };
}

interface Riding {
  readonly limitMs: number;
  readonly firstLimitMs: number;
  readonly onRetry: (error: ClientError, attempt: number) => void;
  readonly onResume: (offset?: bigint) => void;
}
