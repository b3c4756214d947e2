/** Every limit of the server in one place; what a client sends beyond one is refused, not queued. */

const SECOND_MS = 1000;
const MINUTE_MS = 60 * SECOND_MS;
const DAY_MS = 24 * 60 * MINUTE_MS;

/** Connections at once that have shown a certificate; a client has a half of them at most: shares.ts. */
export const MAX_CONNECTIONS = 1024;
/** Connections beyond a share that stay, so that their calls are told of it, … */
export const MAX_CONNECTIONS_TOLD = 64;
/** … and for how long. */
export const TOLD_MS = 2 * SECOND_MS;
/** Calls at once; a client has a half of them at most. Followers are calls, and one client may have a thousand. */
export const MAX_CALLS = 4096;
/** Connections that the kernel holds until they are accepted; net.core.somaxconn may be less. */
export const BACKLOG = 4096;
/** Connections at once that have not sent a byte: a descriptor each. */
export const MAX_SILENT = 512;
/** TLS handshakes at once: each costs an RSA signature before anyone is known. */
export const MAX_HANDSHAKES = 128;
export const HANDSHAKE_TIMEOUT_MS = 10 * SECOND_MS;
/** The audit log: its files together, how long files before it stay, and when another follows. */
export const AUDIT_LIMITS = { limitBytes: 256 * 1024 * 1024, keepMs: 365 * DAY_MS, turnMs: DAY_MS };
/** Refusals of a kind, and of all kinds, that are recorded each minute; the rest are counted in one record. */
export const FEW = { ofKind: 10, ofAll: 50, windowMs: MINUTE_MS };

/** Calls at once on one connection beyond a client's share: so many are told of it at once, others after them. */
const CALLS_TOLD_PER_CONNECTION = 64;
/** Of one HTTP/2 session, in MB as node:http2 counts: queued output, headers, streams. */
const MAX_SESSION_MEMORY_MB = 64;
/** Of one client's answers, that it has not taken: an answer may have the two megabytes of a job's arguments. */
export const MAX_UNREAD_BYTES = 32 * 1024 * 1024;
/** A page of jobs ends once it has so much, and with the jobs that are found in so long. */
export const LIST_BYTES = 1024 * 1024;
export const LIST_MS = SECOND_MS;
/** Of a request that changes nothing, as it comes: thousands may be under way. */
export const MAX_QUESTION_BYTES = 64 * 1024;
/** Of the requests of one client's open calls. */
export const MAX_REQUESTS_BYTES = 32 * 1024 * 1024;
/** Of one request: the 2 MiB of arguments and variables that a start may have take no more, and its limits 512 KiB. */
const MAX_REQUEST_BYTES = 2.5 * 1024 * 1024;

/** An idle peer is asked for a sign of life this often … */
const KEEPALIVE_MS = MINUTE_MS;
/** … and has so long to give it. */
const KEEPALIVE_TIMEOUT_MS = 20 * SECOND_MS;
/** Connections are renewed, because a handshake is when certificates are verified whole. */
const MAX_CONNECTION_AGE_MS = 60 * MINUTE_MS;
/** For calls that are open then. */
const MAX_CONNECTION_AGE_GRACE_MS = 60 * MINUTE_MS;

/** When to try again, as RetryInfo says to clients. */
export const RETRY_DELAY_MS = SECOND_MS;

/** The same, under the names that grpc-js knows them by. `calls` is what one client may have at once. */
export const grpcOptions = (calls: number) => ({
  "grpc.max_concurrent_streams": calls + CALLS_TOLD_PER_CONNECTION,
  "grpc.max_receive_message_length": MAX_REQUEST_BYTES,
  "grpc.keepalive_time_ms": KEEPALIVE_MS,
  "grpc.keepalive_timeout_ms": KEEPALIVE_TIMEOUT_MS,
  "grpc.max_connection_age_ms": MAX_CONNECTION_AGE_MS,
  "grpc.max_connection_age_grace_ms": MAX_CONNECTION_AGE_GRACE_MS,
  "grpc-node.max_session_memory": MAX_SESSION_MEMORY_MB,
  "grpc.enable_channelz": 0,
});
