import { setTimeout as delay } from "node:timers/promises";
import type { StreamResponse } from "../../proto/generated/jobs/v1/worker.ts";
import { pauseAfter, type Pauses } from "../os/pause.ts";
import { ClientError } from "./errors.ts";
import type { Client, StreamInput } from "./client.ts";

export interface RetryOptions {
  readonly signal?: AbortSignal | undefined;
  /** How long to go on trying in an outage: from the first failure until something is answered. */
  readonly limitMs: number;
  /** The same for a worker that has not been reached at all yet; `limitMs` when absent, 0 for no second try. */
  readonly firstLimitMs?: number | undefined;
  /** Told of each failure before the pause that follows it; `attempt` counts from 1 in each outage. */
  readonly onRetry?: ((error: ClientError, attempt: number) => void) | undefined;
  /** Told when there is a connection again, or an answer. */
  readonly onResume?: (() => void) | undefined;
}

const PAUSES: Pauses = { firstMs: 100, lastMs: 3_000 };

/**
 * Calls again while there is no worker to answer, with growing pauses. Only for calls that may be repeated: Query, List,
 * Wait, Stop, and Start with a request_id.
 */
export async function retrying<Answer>(
  client: Client,
  call: () => Promise<Answer>,
  options: RetryOptions,
): Promise<Answer> {
  const outage = outages(client, options);
  for (;;) {
    try {
      outage.attempt();
      const answer = await call();
      outage.over();
      return answer;
    } catch (error) {
      await outage.failed(error);
    }
  }
}

/**
 * Streams like client.stream(), and continues where a broken stream ended, so that no byte is lost or comes twice.
 * Throws the ClientError of the last attempt when the worker stays away for longer than `limitMs`.
 */
export async function* resuming(
  client: Client,
  request: StreamInput,
  options: Omit<RetryOptions, "onResume"> & {
    /** Called with the offset to continue at; undefined when the stream began at no offset and nothing has come yet. */
    readonly onResume?: (offset: bigint | undefined) => void;
  },
): AsyncGenerator<StreamResponse, void, void> {
  const { position: from } = request;
  let next = from?.$case === "offset" && from.value !== undefined ? BigInt(from.value) : undefined;
  const open = (): ReturnType<Client["stream"]> => {
    const position = next === undefined ? request.position : ({ $case: "offset", value: next } as const);
    return client.stream({ ...request, position }, { signal: options.signal });
  };
  for await (const message of reopening(client, open, { ...options, onResume: () => options.onResume?.(next) })) {
    yield message;
    next = message.offset + BigInt(message.output.length) + message.gap;
  }
}

/**
 * Opens a stream again where it broke off, with growing pauses. Throws the ClientError of the last attempt when the
 * worker stays away for longer than `limitMs`.
 */
export async function* reopening<Message>(
  client: Client,
  open: () => AsyncGenerator<Message, void, void>,
  options: RetryOptions,
): AsyncGenerator<Message, void, void> {
  const outage = outages(client, options);
  for (;;) {
    try {
      outage.attempt();
      for await (const message of open()) {
        outage.over();
        yield message;
      }
      outage.over();
      return;
    } catch (error) {
      await outage.failed(error);
    }
  }
}

/** Reports of an attempt's outcome. */
interface Outages {
  /** Begins an attempt. */
  attempt(): void;
  /** Ends the outage: there was an answer. */
  over(): void;
  /** Waits after a failure that may pass. Rethrows one that will not, or that has lasted for too long. */
  failed(error: unknown): Promise<void>;
}

/** An outage lasts from the first failure until an answer. */
interface Outage {
  readonly endMs: number;
  /** The number of failures in this outage: each makes the next pause longer. */
  failures: number;
  /** Failures that onRetry was told of since the last connection; 0 in the state `back`. */
  told: number;
  /** How many connections there had been at the last failure. */
  count: number;
}

/**
 * Follows the outages of one call:
 *
 *             failure: onRetry            connection: onResume
 *     here ────────────────────▶ away ─────────────────────────▶ back
 *      ▲                         │  ▲                            │  │
 *      ├──────── answer ─────────┘  └────── failure: onRetry ────┘  │
 *      └──────── answer, or a failure after a connection that lasted
 *
 * In `here` there is no outage. In `back` there is a connection, and no answer yet: a worker that refuses the call at once
 * is still in the same outage, whose time goes on.
 */
function outages(
  { connections }: Pick<Client, "connections">,
  { signal, limitMs, firstLimitMs = limitMs, onRetry, onResume }: RetryOptions,
): Outages {
  let outage: Outage | undefined;
  let attempt = { beganMs: 0 };

  function back(): void {
    if (outage === undefined || outage.told === 0) return;
    outage.told = 0;
    onResume?.();
  }

  /**
   * Tells whether the last attempt ended the outage: it had a connection, for so long that the worker did not refuse it.
   */
  function lasted(count: number): boolean {
    if (count === 0) return connections.count > 0;
    return connections.count > count && performance.now() - attempt.beganMs > PAUSES.lastMs;
  }

  /** Counts a failure, and tells of it. Returns the pause after it; undefined when the outage has lasted too long. */
  function away(failure: ClientError): number | undefined {
    const now = performance.now();
    if (outage && lasted(outage.count)) outage = undefined;
    // This failure was for want of the connection that came before it was heard, and that onResume was told of.
    const late = outage?.told === 0 && connections.up && connections.count > outage.count;
    outage ??= { endMs: now + (connections.count === 0 ? firstLimitMs : limitMs), failures: 0, told: 0, count: 0 };
    outage.count = connections.count;
    const pauseMs = pauseAfter(++outage.failures, PAUSES);
    attempt = { beganMs: now };
    if (now + pauseMs > outage.endMs) return undefined;
    if (late) return pauseMs;
    outage.told++;
    onRetry?.(failure, outage.told);
    return pauseMs;
  }

  return {
    attempt() {
      const begun = { beganMs: performance.now() };
      attempt = begun;
      if (outage === undefined) return;
      if (connections.count > outage.count) back();
      // A call may last for days and say nothing.
      else void connections.next().then(() => attempt === begun && back());
    },
    over() {
      back();
      outage = undefined;
    },
    async failed(failure) {
      const pauseMs = signal?.aborted || !isPassing(failure) ? undefined : away(failure);
      if (pauseMs === undefined) throw failure;
      await delay(pauseMs, undefined, { signal }).catch(() => {
        throw failure;
      });
    },
  };
}

/**
 * Tells whether a call may succeed when it is repeated. CANCELLED is the end of a connection that has reached its greatest
 * age, where the caller did not give the call up. A reason of the worker's own, as AUDIT_UNAVAILABLE, is for a person to mend.
 */
function isPassing(failure: unknown): failure is ClientError {
  if (!(failure instanceof ClientError) || (failure.code !== "UNAVAILABLE" && failure.code !== "CANCELLED"))
    return false;
  return failure.reason === "" || failure.reason === "UNAVAILABLE";
}
