/** Every limit of the server is in this file. What a client sends beyond a limit is refused, and not queued. */

const SECOND_MS = 1000;
const MINUTE_MS = 60 * SECOND_MS;
const DAY_MS = 24 * 60 * MINUTE_MS;

/** How many connections that have shown a certificate are open at once. One client has a half at most: shares.ts. */
export const MAX_CONNECTIONS = 1024;
/** How many connections beyond a share stay, so that their calls are told why they are refused, … */
export const MAX_CONNECTIONS_TOLD = 64;
/** … and for how long. */
export const TOLD_MS = 2 * SECOND_MS;
/** How long a connection stays whose certificate was revoked, so that its calls are told. */
export const REFUSED_MS = SECOND_MS / 4;
/** How many calls are open at once. One client has a half at most. A follower is a call, and one client may have a thousand. */
export const MAX_CALLS = 4096;
/** How many connections the kernel holds until they are accepted; net.core.somaxconn may be less. */
export const BACKLOG = 4096;
/** How many connections have not sent a byte. Each takes a descriptor. */
export const MAX_SILENT = 512;
/** How many TLS handshakes go on at once. Each costs a signature before the client is known. */
export const MAX_HANDSHAKES = 128;
export const HANDSHAKE_TIMEOUT_MS = 10 * SECOND_MS;
/** The audit log's size, how long a file stays that another has followed, and when another follows. */
export const AUDIT_LIMITS = { limitBytes: 256 * 1024 * 1024, keepMs: 365 * DAY_MS, turnMs: DAY_MS };
/** How many refusals of one kind, and of all kinds, are recorded in a minute. One record counts the rest. */
export const FEW = { ofKind: 10, ofAll: 50, windowMs: MINUTE_MS };

/** How many calls beyond a client's share one connection has at once, to be told that they are refused. Others wait. */
const CALLS_TOLD_PER_CONNECTION = 64;
/** The memory of one HTTP/2 session, in MB as node:http2 counts: queued output, headers, streams. */
const MAX_SESSION_MEMORY_MB = 64;
/** The bytes of answers that one client has not taken. An answer may have the two megabytes of a job's arguments. */
export const MAX_UNREAD_BYTES = 32 * 1024 * 1024;
/** A page of jobs ends when it has this many bytes, or when the search has taken this long. */
export const LIST_BYTES = 1024 * 1024;
export const LIST_MS = SECOND_MS;
/** The bytes of a request other than Start and Update. Thousands may be under way. */
export const MAX_QUESTION_BYTES = 64 * 1024;
/** The bytes of the requests of one client's open calls. */
export const MAX_REQUESTS_BYTES = 32 * 1024 * 1024;
/** The bytes of one request: 2 MiB of arguments and variables, which is the most of a start, and 512 KiB of its limits. */
const MAX_REQUEST_BYTES = 2.5 * 1024 * 1024;

/** How often an idle client is asked for a sign of life, … */
const KEEPALIVE_MS = MINUTE_MS;
/** … and how long it has to give one. */
const KEEPALIVE_TIMEOUT_MS = 20 * SECOND_MS;
/** Connections are renewed, because certificates are verified as a whole in a handshake only. */
const MAX_CONNECTION_AGE_MS = 60 * MINUTE_MS;
/** How long calls that are open then may go on. */
const MAX_CONNECTION_AGE_GRACE_MS = 60 * MINUTE_MS;

/** How long RetryInfo tells clients to wait before they try again. */
export const RETRY_DELAY_MS = SECOND_MS;

/** The limits under grpc-js's names for them. `calls` is how many calls one client may have at once. */
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
