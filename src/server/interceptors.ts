import { randomUUID } from "node:crypto";
import { Duplex } from "node:stream";
import { type Metadata, type ServerInterceptor, status } from "@grpc/grpc-js";
import type { Logger } from "pino";
import { readable, textOf } from "../os/bytes.ts";
import { type Audit, audited, type AuditRecord, short } from "./audit.ts";
import { type Connections, type Ends, peerOf } from "./connections.ts";
import type { Few } from "./few.ts";
import { type Caller, explain, guardedInterceptor } from "./guard.ts";
import type { Identity } from "./identity.ts";
import { MAX_QUESTION_BYTES, MAX_UNREAD_BYTES } from "./limits.ts";
import { mutates, needsRecord, rolesOf } from "./roles.ts";
import type { Shares } from "./shares.ts";
import { type Failure, statusOf } from "./status.ts";
import type { Turns } from "./turns.ts";

const MAX_RECORDED_CHARS = 1024;

const UNRECORDED: Failure = {
  code: status.UNAVAILABLE,
  reason: "AUDIT_UNAVAILABLE",
  message: "the audit log cannot be written, so nothing may be started or changed; the worker's log says why",
};

const COMPRESSED: Failure = {
  code: status.UNIMPLEMENTED,
  reason: "REQUEST_COMPRESSED",
  message: "the request is compressed, and this server takes none that is: send it with grpc-encoding identity",
};

/** Why a call is not allowed; undefined when it is. Default deny: `rolesOf` an unknown method is nobody. */
function denial(identity: Identity, path: string): Failure | undefined {
  if (!identity.ok) {
    const { reason, message } = identity;
    const code = reason.startsWith("ROLE_") ? status.PERMISSION_DENIED : status.UNAUTHENTICATED;
    return { code, reason, message };
  }
  const { name, role } = identity.principal;
  const roles = rolesOf(path);
  if (roles.includes(role)) return undefined;
  const method = path.slice(path.lastIndexOf("/") + 1);
  const needed = roles.length > 0 ? `the role ${roles.join(" or ")}` : "a role that nobody has";
  const message = `${method} needs ${needed}; the certificate of ${JSON.stringify(name)} has ${role}`;
  return { code: status.PERMISSION_DENIED, reason: "ROLE_NOT_ALLOWED", message, facts: { role, method } };
}

/** What calls share, by whose connection they come on. */
export interface Room {
  readonly calls: Shares;
  readonly turns: Turns;
  /** Bytes of each one's answers that have not been taken from here. */
  readonly unread: Map<string, number>;
}

/** Why a call is not answered; undefined when it is. */
function unreadable(unread: Room["unread"], owner: string): Failure | undefined {
  if ((unread.get(owner) ?? 0) < MAX_UNREAD_BYTES) return undefined;
  return {
    code: status.RESOURCE_EXHAUSTED,
    reason: "UNREAD_ANSWERS",
    message: `answers of ${MAX_UNREAD_BYTES} bytes wait to be read by certificates of this name and role: read them first`,
    facts: { limit: "unread-bytes-of-one-client", maximum: String(MAX_UNREAD_BYTES) },
  };
}

/** Why a call finds no room; undefined when it does. */
function crowded(connections: Connections, calls: Shares, ends: Ends): Failure | undefined {
  const over = connections.overOf(ends);
  const full = over ?? calls.full(connections.ownerOf(ends));
  if (!full) return undefined;
  const what = over ? "connections" : "calls";
  const whose = full.whose === "own" ? "certificates of one name and role have" : "all clients together have";
  const remedy = full.whose === "own" ? `end some of yours` : `try again, or have jobsd allow more with --max-${what}`;
  return {
    code: status.RESOURCE_EXHAUSTED,
    reason: over ? "TOO_MANY_CONNECTIONS" : "TOO_MANY_CALLS",
    message: `${whose} ${full.maximum} ${what} open, which is as many as they may: ${remedy}`,
    facts: { limit: full.whose === "own" ? `${what}-of-one-client` : what, maximum: String(full.maximum) },
  };
}

/**
 * Lets a call through to its handler, and its caller into `callers`, or answers why not. Both wait for a turn, so
 * that a client with a thousand calls is as long before others as one with one.
 */
export function authorise(
  connections: Connections,
  callers: WeakMap<Metadata, Caller>,
  { calls, turns, unread }: Room,
  log: Logger,
): ServerInterceptor {
  return guardedInterceptor(({ path }, call) => {
    const ends = call.getConnectionInfo();
    const owner = connections.ownerOf(ends);
    let gone = false;
    let bytes = 0;
    const weigh = (more: number): void => {
      bytes += more;
      const all = (unread.get(owner) ?? 0) + more;
      if (all > 0) unread.set(owner, all);
      else unread.delete(owner);
    };
    /** Of nobody who has gone meanwhile; what throws ends its own call. */
    const later = (work: () => void): void =>
      turns.take(owner, () => {
        if (gone) return false;
        try {
          work();
        } catch (error) {
          call.sendStatus(statusOf(explain(error, log, path)));
        }
        return true;
      });
    return {
      start(next) {
        const identity = connections.identify(ends);
        const denied = denial(identity, path) ?? crowded(connections, calls, ends);
        if (denied) {
          // Without `next` no handler runs.
          later(() => call.sendStatus(statusOf(denied)));
          return;
        }
        next({
          onReceiveMetadata(metadata, pass) {
            // Here and not before: of a call that was over before it began `onCancel` is never told.
            calls.take(owner);
            if (identity.ok)
              callers.set(metadata, {
                principal: identity.principal,
                take: (work) => turns.take(owner, work, "begun"),
              });
            pass(metadata);
          },
          onReceiveHalfClose(pass) {
            later(() => {
              const full = unreadable(unread, owner);
              if (full) call.sendStatus(statusOf(full));
              else pass();
            });
          },
          // grpc-js tells it of every call once nothing of it is left to be sent.
          onCancel() {
            gone = true;
            calls.give(owner);
            weigh(-bytes);
          },
        });
      },
      sendMessage(message, pass) {
        if (Buffer.isBuffer(message)) weigh(message.length);
        pass(message);
      },
    };
  }, log);
}

/**
 * Records every call. It comes before `authorise`, whose denials pass its `sendStatus`. One record when the call has
 * ended; of a call that changes something or streams one more before its handler runs, so that nothing happens
 * without a record on disk and that a stream of days is no secret. A start or an update is refused when that first
 * record cannot be written; others go on, and the failure is logged. Of calls that are denied the first `few` of a client
 * have a record each.
 */
export function auditCalls(audit: Audit, connections: Connections, few: Few, log: Logger): ServerInterceptor {
  return guardedInterceptor(({ path, responseStream }, call) => {
    const startedMs = performance.now();
    const ends = call.getConnectionInfo();
    const identity = connections.identify(ends);
    const certificate = identity.ok ? identity.principal : identity.certificate;
    let facts: Omit<AuditRecord, "decision"> = {
      id: randomUUID(),
      event: "call",
      method: path,
      peer: peerOf(ends),
      ...(certificate && { principal: audited(certificate) }),
    };
    const twice = responseStream || mutates(path);
    if (!mutates(path)) boundRequest(call);
    let allowed = false;
    let ended = false;

    function record(more: Partial<AuditRecord>): boolean {
      return writeRecord(audit, log, { ...facts, decision: allowed ? "allowed" : "denied", ...more });
    }
    function end(code: status, reason?: string): void {
      if (ended) return;
      ended = true;
      if (!allowed && !few.pass(`${connections.ownerOf(ends)}: ${reason ?? status[code]}`)) return;
      record({
        ...(twice && allowed && { stage: "end" }),
        code: status[code],
        durationMs: Math.round(performance.now() - startedMs),
        ...(reason !== undefined && { reason }),
      });
    }

    return {
      start(next) {
        if (isCompressed(call)) {
          end(COMPRESSED.code, COMPRESSED.reason);
          call.sendStatus(statusOf(COMPRESSED));
          return;
        }
        allowed = true;
        next({
          onReceiveMessage(message, pass) {
            facts = { ...facts, ...requestFacts(message) };
            if (!twice || record({ stage: "begin" }) || !needsRecord(path)) {
              pass(message);
              return;
            }
            end(UNRECORDED.code, UNRECORDED.reason);
            call.sendStatus(statusOf(UNRECORDED));
          },
          onCancel() {
            // Also after a status that grpc-js sends by itself: a deadline, or a request that is too large or malformed.
            const late = Number(call.getDeadline()) <= Date.now();
            end(late ? status.DEADLINE_EXCEEDED : status.CANCELLED, "ended before it was answered");
          },
        });
      },
      sendMessage(message, next) {
        if (facts.jobId === undefined) facts = { ...facts, ...jobIdIn(message) };
        next(message);
      },
      sendStatus(outbound, next) {
        const code = outbound.code ?? status.UNKNOWN;
        end(code, allowed ? undefined : (denial(identity, path)?.reason ?? "NO_ROOM"));
        next(outbound);
      },
    };
  }, log);
}

/**
 * Whether a call's messages come compressed: 4 KB of them may be 4 MB that grpc-js has to make, and a request's length on
 * the wire would bound nothing.
 */
function isCompressed(call: Parameters<ServerInterceptor>[1]): boolean {
  // grpc-js's own, and not in its types.
  return "incomingEncoding" in call && call.incomingEncoding !== "identity";
}

/**
 * Ends a call whose request is longer than any that only looks: grpc-js keeps what has come of a message until it is
 * whole, and has one limit for all, which is that of a start.
 */
function boundRequest(call: Parameters<ServerInterceptor>[1]): void {
  // grpc-js's own, and not in its types.
  if (!("stream" in call) || !(call.stream instanceof Duplex)) return;
  let bytes = 0;
  call.stream.on("data", (data: Buffer) => {
    const before = bytes;
    bytes += data.length;
    if (before > MAX_QUESTION_BYTES || bytes <= MAX_QUESTION_BYTES) return;
    call.sendStatus(
      statusOf({
        code: status.RESOURCE_EXHAUSTED,
        reason: "REQUEST_TOO_LONG",
        message: `the request is longer than ${MAX_QUESTION_BYTES} bytes, which none but Start and Update may be`,
        facts: { limit: "request-bytes", maximum: String(MAX_QUESTION_BYTES) },
      }),
    );
  });
}

/** True when it is on disk; the reason is logged when not. */
export function writeRecord(audit: Pick<Audit, "write">, log: Logger, record: AuditRecord): boolean {
  try {
    audit.write(record);
    return true;
  } catch (error) {
    log.error({ err: error, record: short(record) }, "audit record lost");
    return false;
  }
}

function requestFacts(message: unknown): Partial<AuditRecord> {
  if (typeof message !== "object" || message === null) return {};
  const limits = "resources" in message ? limitNames(message.resources) : [];
  const asked = limits.length > 0 && { limits };
  if (!("command" in message) || typeof message.command !== "string")
    return { ...jobIdIn(message), ...(asked && { request: asked }) };
  const args: unknown[] = "args" in message && Array.isArray(message.args) ? message.args : [];
  const bytes: unknown[] = "argvBytes" in message && Array.isArray(message.argvBytes) ? message.argvBytes : [];
  const [command = message.command, ...rest] = bytes.length > 0 ? bytes : [message.command, ...args];
  const text = command instanceof Uint8Array ? readable(textOf(command.subarray(0, MAX_RECORDED_CHARS))) : command;
  return { request: { command: String(text).slice(0, MAX_RECORDED_CHARS), argc: rest.length, ...asked } };
}

function jobIdIn(message: unknown): { jobId?: string } {
  if (typeof message !== "object" || message === null || !("jobId" in message)) return {};
  return typeof message.jobId === "string" ? { jobId: message.jobId.slice(0, MAX_RECORDED_CHARS) } : {};
}

/** `memory.limit`, `unified.memory.high`, `devices`: which limits were asked for, not how high. */
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
