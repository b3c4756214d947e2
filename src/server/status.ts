import { Metadata, status, type StatusObject } from "@grpc/grpc-js";
import { BadRequest, ErrorInfo, RetryInfo, Status } from "../../proto/generated/google/rpc/details.ts";
import { JobError, type JobErrorCode } from "../worker/index.ts";
import { RETRY_DELAY_MS } from "./limits.ts";

/** An error as a client is told of it. */
export interface Failure {
  readonly code: status;
  /** The reason for programs, in UPPER_SNAKE_CASE (AIP-193). */
  readonly reason: string;
  readonly message: string;
  /** The request's field that is wrong. */
  readonly field?: string | undefined;
  readonly facts?: Readonly<Record<string, string>>;
  /** Why the client may not do that, for the audit log: the client is not told. */
  readonly denied?: string | undefined;
}

/** Ends a call with a failure that is not the worker's. */
export class Denied extends Error {
  override readonly name = "Denied";
  readonly failure: Failure;

  constructor(failure: Failure) {
    super(failure.message);
    this.failure = failure;
  }
}

/** gRPC's status for each of the worker's errors; google.rpc.Code says what each is for. */
const CODES: Readonly<Record<JobErrorCode, status>> = {
  invalid: status.INVALID_ARGUMENT,
  "not-found": status.NOT_FOUND,
  pruned: status.NOT_FOUND,
  forbidden: status.PERMISSION_DENIED,
  unsupported: status.FAILED_PRECONDITION,
  precondition: status.FAILED_PRECONDITION,
  exhausted: status.RESOURCE_EXHAUSTED,
  unavailable: status.UNAVAILABLE,
  "data-loss": status.DATA_LOSS,
  internal: status.INTERNAL,
};

const RETRIABLE: ReadonlySet<status> = new Set([status.RESOURCE_EXHAUSTED, status.UNAVAILABLE]);

// A status travels in HTTP/2 headers: its message (percent-encoded, up to 3 bytes a byte) and its details (base64) must
// stay below the 8 KiB that peers accept.
const MAX_MESSAGE_BYTES = 900;
const MAX_FIELD_BYTES = 200;
const MAX_FACTS = 6;
const MAX_FACT_NAME_BYTES = 64;
const MAX_FACT_BYTES = 128;

/** Returns the failure that an error stands for; undefined for the worker's `internal` and for any other exception. */
export function failureOf(error: unknown): Failure | undefined {
  if (error instanceof Denied) return error.failure;
  if (!(error instanceof JobError) || error.code === "internal") return undefined;
  return {
    code: CODES[error.code],
    reason: (error.reason ?? error.code).toUpperCase().replaceAll("-", "_"),
    message: error.message,
    field: error.field,
    facts: error.facts,
    denied: error.denied,
  };
}

const denials = new WeakMap<Metadata, string>();

/** Returns why a status denies what the client may not do, where the status does not tell the client; else undefined. */
export function denialIn({ metadata }: { readonly metadata?: Metadata | null | undefined }): string | undefined {
  return metadata ? denials.get(metadata) : undefined;
}

/** Makes the status that grpc-js sends for a failure: code, message, and google.rpc details under 8 KiB. */
export function statusOf(failure: Failure): StatusObject {
  const { code, reason, field, facts } = failure;
  const message = clip(failure.message, MAX_MESSAGE_BYTES);
  const kept = Object.entries(facts ?? {})
    .slice(0, MAX_FACTS)
    .map(([key, value]) => [clip(key, MAX_FACT_NAME_BYTES), clip(value, MAX_FACT_BYTES)] as const);
  const details = [packed("ErrorInfo", ErrorInfo.encode({ reason, domain: "jobs", metadata: new Map(kept) }).finish())];
  // The proto promises it for this code; other errors name the field in their message.
  if (field !== undefined && code === status.INVALID_ARGUMENT) {
    const fieldViolations = [{ field: clip(field, MAX_FIELD_BYTES), description: message }];
    details.push(packed("BadRequest", BadRequest.encode({ fieldViolations }).finish()));
  }
  if (RETRIABLE.has(code)) {
    const retryDelay = { seconds: BigInt(Math.trunc(RETRY_DELAY_MS / 1000)), nanos: (RETRY_DELAY_MS % 1000) * 1e6 };
    details.push(packed("RetryInfo", RetryInfo.encode({ retryDelay }).finish()));
  }
  const metadata = new Metadata();
  metadata.set("grpc-status-details-bin", Buffer.from(Status.encode({ code, message, details }).finish()));
  if (failure.denied !== undefined) denials.set(metadata, failure.denied);
  return { code, details: message, metadata };
}

function packed(name: string, value: Uint8Array): { typeUrl: string; value: Buffer } {
  return { typeUrl: `type.googleapis.com/google.rpc.${name}`, value: Buffer.from(value) };
}

/** Cuts a text to `maxBytes` of UTF-8, between characters: grpc-js throws on half a surrogate pair. */
function clip(text: string, maxBytes: number): string {
  const bytes = Buffer.from(text.toWellFormed());
  if (bytes.length <= maxBytes) return text.toWellFormed();
  let end = maxBytes - 3;
  while (((bytes[end] ?? 0) & 0xc0) === 0x80) end--;
  return `${bytes.toString("utf8", 0, end)}…`;
}
