import { randomUUID } from "node:crypto";
import { Metadata, status, type ServerInterceptor } from "@grpc/grpc-js";
import type { Logger } from "pino";
import { readable, textOf } from "../os/bytes.ts";
import { type TraceParent, writeTraceParent } from "../os/traceparent.ts";
import type { Identity } from "../x509/identity.ts";
import { audited, writeRecord, type Audit, type AuditRecord } from "./audit.ts";
import { callTurns, denial, type Room } from "./authorise.ts";
import { peerOf, type Connections, type Ends } from "./connections.ts";
import type { Few } from "./few.ts";
import { type Call, guardedInterceptor, type Method } from "./guard.ts";
import { boundRequest, decoded, isCompressed, COMPRESSED } from "./requests.ts";
import type { ServerMeter } from "./meter.ts";
import { mutates, needsRecord } from "./roles.ts";
import { denialIn, statusOf, type Failure } from "./status.ts";
import { TRACEPARENT, traceParentIn, type Tracing } from "./tracing.ts";

const MAX_RECORDED_CHARS = 1024;

const UNRECORDED: Failure = {
  code: status.UNAVAILABLE,
  reason: "AUDIT_UNAVAILABLE",
  message: "the audit log cannot be written, so nothing may be started or changed; the worker's log says why",
};

/** The parts of the server that recording needs. */
export interface Recording {
  readonly audit: Audit;
  readonly connections: Connections;
  /** Decides which denied calls of a client have a record each. */
  readonly few: Few;
  readonly meter: ServerMeter;
  readonly tracing: Tracing;
  readonly log: Logger;
}

/**
 * Records every call, once when it has ended. A call that changes something or streams has one more record before its
 * handler runs: nothing happens without a record on disk, and a stream of days is no secret. A start or an update is
 * refused when that record cannot be written; other calls go on, and the failure is logged. This interceptor comes before
 * `authorise`, whose denials pass its `sendStatus`, and decodes a long request in a turn of its client's.
 */
export function auditCalls(recording: Recording, room: Room): ServerInterceptor {
  const { connections, log } = recording;
  return guardedInterceptor((method, call) => {
    const { path } = method;
    const ends = call.getConnectionInfo();
    const owner = connections.ownerOf(ends);
    const watch = watched(recording, path, traceParentIn(metadataOf(call)?.get(TRACEPARENT) ?? []));
    const records = callRecords(recording, method, ends, watch);
    const turns = callTurns(room, owner, call, path, log);
    const refuse = (failure: Failure): void => {
      records.refused(failure);
      call.sendStatus(statusOf(failure));
    };
    boundRequest(call, path, (bytes) => room.requests.add(owner, bytes), refuse);
    return {
      start(next) {
        if (isCompressed(call)) {
          refuse(COMPRESSED);
          return;
        }
        records.allow();
        next({
          onReceiveMetadata(metadata, pass) {
            if (watch.traceparent === undefined) metadata.remove(TRACEPARENT);
            else metadata.set(TRACEPARENT, watch.traceparent);
            pass(metadata);
          },
          onReceiveMessage(message, pass) {
            decoded(message, turns.later, (request) => {
              if (records.begin(request)) pass(request);
              else refuse(UNRECORDED);
            });
          },
          onCancel() {
            turns.end();
            // grpc-js ends a call by itself when the deadline has passed, or the request is too long or malformed.
            const late = Number(call.getDeadline()) <= Date.now();
            records.end(late ? status.DEADLINE_EXCEEDED : status.CANCELLED, "ended before it was answered");
          },
        });
      },
      sendMessage(message, next) {
        records.answered(message);
        next(message);
      },
      sendStatus(outbound, next) {
        records.endWith(outbound.code ?? status.UNKNOWN, denialIn(outbound));
        next(outbound);
      },
    };
  }, log);
}

/** The metadata of a call, before it is let in. */
function metadataOf(call: Call): Metadata | undefined {
  // grpc-js has this field, and its types do not.
  return "metadata" in call && call.metadata instanceof Metadata ? call.metadata : undefined;
}

/** Has the meter and the trace hear of a call: what it does has `traceparent`, and its records have `recorded`. */
function watched({ meter, tracing }: Recording, path: string, parent: TraceParent | undefined) {
  const span = tracing.call(path, parent);
  meter.opened(path);
  return {
    traceparent: span.traceparent,
    recorded: parent ? writeTraceParent(parent) : span.traceparent,
    /** @param denied why the call was denied */
    end(code: status, denied: string | undefined): void {
      meter.closed(path, status[code]);
      span.end(code);
      if (denied !== undefined) meter.refused(denied);
    },
  };
}

/** Makes the records of one call. */
function callRecords(
  { audit, connections, few, log }: Recording,
  { path, responseStream }: Method,
  ends: Ends,
  watch: ReturnType<typeof watched>,
) {
  const startedMs = performance.now();
  const identity = connections.identify(ends);
  const twice = responseStream || mutates(path);
  let facts = factsOf({ method: path, traceparent: watch.recorded }, ends, identity);
  let allowed = false;
  let begun = false;
  let ended = false;

  function record(more: Partial<AuditRecord>): boolean {
    return writeRecord(audit, log, { ...facts, decision: allowed ? "allowed" : "denied", ...more });
  }
  /** Records the end, once; `reason` is why the call was denied, or ended otherwise than by its handler. */
  function end(code: status, reason?: string): void {
    if (ended) return;
    ended = true;
    watch.end(code, allowed ? undefined : (reason ?? status[code]));
    if (!allowed && !begun && !few.pass(`${connections.ownerOf(ends)}: ${reason ?? status[code]}`)) return;
    record({
      ...(twice && (allowed || begun) && { stage: "end" }),
      code: status[code],
      durationMs: Math.round(performance.now() - startedMs),
      ...(reason !== undefined && { reason }),
    });
  }
  return {
    end,
    /**
     * Records the end with the status that is sent. Before `allow` that is a denial by `authorise`; afterwards the handler may
     * have `denied` it, as where the job is another owner's.
     */
    endWith(code: status, denied: string | undefined): void {
      if (denied !== undefined) allowed = false;
      end(code, denied ?? (allowed ? undefined : (denial(identity, path)?.reason ?? "NO_ROOM")));
    },
    allow: () => void (allowed = true),
    refused({ code, reason }: Failure): void {
      allowed = false;
      end(code, reason);
    },
    /** Notes what a request asks for, and records that where a record comes first; false when the call may not go on. */
    begin(request: unknown): boolean {
      facts = { ...facts, ...requestFacts(request) };
      if (!twice || begun) return true;
      begun = record({ stage: "begin" });
      return begun || !needsRecord(path);
    },
    /** Takes the job's id from the answer, or counts the jobs in it. */
    answered(message: unknown): void {
      facts = { ...facts, ...answerFacts(message, facts) };
    },
  };
}

type Facts = Omit<AuditRecord, "decision">;

/** Returns what is known of a call before its request. */
function factsOf(
  asked: { readonly method: string; readonly traceparent: string | undefined },
  ends: Ends,
  identity: Identity,
): Facts {
  const certificate = identity.ok ? identity.principal : identity.certificate;
  const principal = certificate && { principal: audited(certificate) };
  const { method, traceparent } = asked;
  const traced = traceparent === undefined ? {} : { traceparent };
  return { id: randomUUID(), event: "call", method, peer: peerOf(ends), ...principal, ...traced };
}

function requestFacts(message: unknown): Partial<AuditRecord> {
  if (typeof message !== "object" || message === null) return {};
  const limits = "resources" in message ? limitNames(message.resources) : [];
  const asked = limits.length > 0 && { limits };
  if ("olderThan" in message) return { request: { prune: pruneFacts(message) } };
  if (!("command" in message) || typeof message.command !== "string")
    return { ...jobIdIn(message), ...(asked && { request: asked }) };
  const args: unknown[] = "args" in message && Array.isArray(message.args) ? message.args : [];
  const bytes: unknown[] = "argvBytes" in message && Array.isArray(message.argvBytes) ? message.argvBytes : [];
  const [command = message.command, ...rest] = bytes.length > 0 ? bytes : [message.command, ...args];
  const text = command instanceof Uint8Array ? readable(textOf(command.subarray(0, MAX_RECORDED_CHARS))) : command;
  return { request: { command: String(text).slice(0, MAX_RECORDED_CHARS), argc: rest.length, ...asked } };
}

/** Tells what a pruning asks for: the age in seconds, how many labels and ways of ending, and what is on. */
function pruneFacts(message: object): Record<string, number | boolean> {
  const facts = Object.entries(message).map(([name, value]: [string, unknown]): [string, number | boolean] => {
    if (value instanceof Map) return [name, value.size];
    if (Array.isArray(value)) return [name, value.length];
    if (typeof value === "object" && value !== null && "seconds" in value) return [name, Number(value.seconds)];
    return [name, value === true];
  });
  return Object.fromEntries(facts.filter(([name, value]) => value || (name === "olderThan" && value === 0)));
}

function answerFacts(message: unknown, { jobId, pruned = 0 }: Partial<AuditRecord>): Partial<AuditRecord> {
  if (typeof message === "object" && message !== null && "jobIds" in message && Array.isArray(message.jobIds))
    return { pruned: pruned + message.jobIds.length };
  return jobId === undefined ? jobIdIn(message) : {};
}

function jobIdIn(message: unknown): { jobId?: string } {
  if (typeof message !== "object" || message === null || !("jobId" in message)) return {};
  return typeof message.jobId === "string" ? { jobId: message.jobId.slice(0, MAX_RECORDED_CHARS) } : {};
}

/** Names the limits that were asked for, as in `memory.limit`, `unified.memory.high`, `devices`; not how high they are. */
function limitNames(resources: unknown): string[] {
  if (typeof resources !== "object" || resources === null) return [];
  return Object.entries(resources).flatMap(([group, value]: [string, unknown]) => {
    if (Array.isArray(value)) return value.length > 0 ? [group] : [];
    const names = value instanceof Map ? value.keys() : definedNames(value);
    return [...names].map((name) => `${group}.${String(name).slice(0, 64)}`);
  });
}

function definedNames(group: unknown): string[] {
  const entries: [string, unknown][] = Object.entries(group ?? {});
  return entries
    .filter(([, value]) => value !== undefined && !(Array.isArray(value) && value.length === 0))
    .map(([name]) => name);
}
