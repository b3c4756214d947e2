import { setTimeout as delay } from "node:timers/promises";
import type { StreamResponse } from "../../proto/generated/jobs/v1/worker.ts";
import { ClientError } from "./errors.ts";
import type { Client, StreamInput } from "./index.ts";

export interface RetryOptions {
  readonly signal?: AbortSignal | undefined;
  /** How long to go on trying while the worker cannot be reached. */
  readonly limitMs: number;
  /** Told of each failure before the pause that follows it; `attempt` counts from 1 in each outage. */
  readonly onRetry?: ((error: ClientError, attempt: number) => void) | undefined;
}

const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 3_000;

/**
 * Calls again while the answer is UNAVAILABLE, with growing pauses. Only for calls that may be repeated: Query, List,
 * Wait, Stop, and Start with a request_id.
 */
export async function retrying<Answer>(call: () => Promise<Answer>, options: RetryOptions): Promise<Answer> {
  const pause = pauses(options);
  for (;;) {
    try {
      return await call();
    } catch (error) {
      await pause(error);
    }
  }
}

/**
 * As client.stream(), but goes on at the offset where a broken stream ended, so that no byte is lost or comes twice.
 * Throws the ClientError of the last attempt when the worker stays away for longer than `limitMs`.
 */
export async function* resuming(
  client: Client,
  request: StreamInput,
  options: RetryOptions & { readonly onResume?: (offset: bigint) => void },
): AsyncGenerator<StreamResponse, void, void> {
  let next: bigint | undefined;
  const open = (): ReturnType<Client["stream"]> => {
    const position = next === undefined ? request.position : ({ $case: "offset", value: next } as const);
    return client.stream({ ...request, position }, { signal: options.signal });
  };
  const onResume = ({ offset }: StreamResponse): void => options.onResume?.(next ?? offset);
  for await (const message of reopening(open, { ...options, onResume })) {
    yield message;
    next = message.offset + BigInt(message.output.length) + message.gap;
  }
}

/**
 * Opens a stream again where it broke off, with growing pauses. Throws the ClientError of the last attempt when the
 * worker stays away for longer than `limitMs`.
 */
export async function* reopening<Message>(
  open: () => AsyncGenerator<Message, void, void>,
  options: RetryOptions & { readonly onResume?: ((message: Message) => void) | undefined },
): AsyncGenerator<Message, void, void> {
  let pause: ReturnType<typeof pauses> | undefined;
  for (;;) {
    try {
      for await (const message of open()) {
        if (pause) options.onResume?.(message);
        pause = undefined;
        yield message;
      }
      return;
    } catch (error) {
      pause ??= pauses(options);
      await pause(error);
    }
  }
}

/** Waits after a failure that may pass, rethrows one that will not, or that has lasted for too long. */
function pauses({ signal, limitMs, onRetry }: RetryOptions): (error: unknown) => Promise<void> {
  const endMs = performance.now() + limitMs;
  let attempt = 0;
  return async (failure) => {
    const pauseMs = Math.min(FIRST_PAUSE_MS * 2 ** attempt++, LONGEST_PAUSE_MS);
    if (signal?.aborted || !isPassing(failure) || performance.now() + pauseMs > endMs) throw failure;
    onRetry?.(failure, attempt);
    await delay(pauseMs, undefined, { signal }).catch(() => {
      throw failure;
    });
  };
}

/** A call that nobody here gave up was cut off with its connection, as when that has reached its greatest age. */
function isPassing(failure: unknown): failure is ClientError {
  return failure instanceof ClientError && (failure.code === "UNAVAILABLE" || failure.code === "CANCELLED");
}
