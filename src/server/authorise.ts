import { status, type Metadata, type ServerInterceptor } from "@grpc/grpc-js";
import type { Logger } from "pino";
import type { Connections, Ends } from "./connections.ts";
import { explain, guardedInterceptor, type Call, type Caller } from "./guard.ts";
import type { Identity } from "../x509/identity.ts";
import { MAX_UNREAD_BYTES } from "./limits.ts";
import { rolesOf } from "./roles.ts";
import type { Shares, Sums } from "./shares.ts";
import { statusOf, type Failure } from "./status.ts";
import type { Turns } from "./turns.ts";

/** Tells why a call is not allowed; undefined when it is. Nobody may call an unknown method: `rolesOf` has no role for it. */
export function denial(identity: Identity, path: string): Failure | undefined {
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

/** Limits that calls share, by the client whose connection they come on. */
export interface Room {
  readonly calls: Shares;
  readonly turns: Turns;
  /** Bytes of the requests of open calls. */
  readonly requests: Sums;
  /** Bytes of answers that the client has not taken. */
  readonly unread: Sums;
}

/** Tells why a call is not answered; undefined when it is. */
function unreadable(unread: Sums, owner: string): Failure | undefined {
  if (unread.of(owner) < MAX_UNREAD_BYTES) return undefined;
  return {
    code: status.RESOURCE_EXHAUSTED,
    reason: "UNREAD_ANSWERS",
    message: `answers of ${MAX_UNREAD_BYTES} bytes wait to be read by certificates of this subject and role: read them first`,
    facts: { limit: "unread-bytes-of-one-client", maximum: String(MAX_UNREAD_BYTES) },
  };
}

/** Tells which limit leaves no room for a call; undefined when none does. */
function crowded(connections: Connections, calls: Shares, ends: Ends): Failure | undefined {
  const over = connections.overOf(ends);
  const full = over ?? calls.full(connections.ownerOf(ends));
  if (!full) return undefined;
  const what = over ? "connections" : "calls";
  const whose = full.whose === "own" ? "certificates of one subject and role have" : "all clients together have";
  const remedy = full.whose === "own" ? `end some of yours` : `try again, or have jobsd allow more with --max-${what}`;
  return {
    code: status.RESOURCE_EXHAUSTED,
    reason: over ? "TOO_MANY_CONNECTIONS" : "TOO_MANY_CALLS",
    message: `${whose} ${full.maximum} ${what} open, which is as many as they may: ${remedy}`,
    facts: { limit: full.whose === "own" ? `${what}-of-one-client` : what, maximum: String(full.maximum) },
  };
}

/** Does the work of one call, each piece in a turn of the client's. */
export interface CallTurns {
  /** Does a piece of work in a turn; an exception ends the call. */
  readonly later: (work: () => void) => void;
  /** Drops the work that has not had its turn. */
  readonly end: () => void;
}

export function callTurns({ turns }: Room, owner: string, call: Call, path: string, log: Logger): CallTurns {
  let gone = false;
  return {
    later(work) {
      turns.take(owner, () => {
        if (gone) return false;
        try {
          work();
        } catch (error) {
          call.sendStatus(statusOf(explain(error, log, path)));
        }
        return true;
      });
    },
    end() {
      gone = true;
    },
  };
}

/**
 * Lets a call through to its handler, and its client into `callers`, or answers why not. Either waits for a turn of the
 * client's, so that a client with a thousand calls delays others no longer than a client with one.
 */
export function authorise(
  connections: Connections,
  callers: WeakMap<Metadata, Caller>,
  room: Room,
  log: Logger,
): ServerInterceptor {
  const { calls, turns, unread } = room;
  return guardedInterceptor(({ path }, call) => {
    const ends = call.getConnectionInfo();
    const owner = connections.ownerOf(ends);
    const { later, end } = callTurns(room, owner, call, path, log);
    let bytes = 0;
    return {
      start(next) {
        const identity = connections.identify(ends);
        const denied = denial(identity, path) ?? crowded(connections, calls, ends);
        if (denied) {
          // No handler runs, because `next` is not called.
          later(() => call.sendStatus(statusOf(denied)));
          return;
        }
        next({
          onReceiveMetadata(metadata, pass) {
            // Counted here, because `onCancel` never comes for a call that was over before this.
            calls.take(owner);
            if (identity.ok)
              callers.set(metadata, {
                principal: identity.principal,
                denied: () => denial(connections.identify(ends), path),
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
          // grpc-js calls this for every call, once nothing of it is left to be sent.
          onCancel() {
            end();
            calls.give(owner);
            unread.add(owner, -bytes);
          },
        });
      },
      sendMessage(message, pass) {
        if (Buffer.isBuffer(message)) {
          bytes += message.length;
          unread.add(owner, message.length);
        }
        pass(message);
      },
    };
  }, log);
}
