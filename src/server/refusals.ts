import { randomUUID } from "node:crypto";
import { subscribe, unsubscribe } from "node:diagnostics_channel";
import type { IncomingHttpHeaders, ServerHttp2Stream } from "node:http2";
import type { Logger } from "pino";
import { audited, writeRecord, type Audit } from "./audit.ts";
import type { Recording } from "./audit-calls.ts";
import { peerOf } from "./connections.ts";
import { fewOf } from "./few.ts";
import { inspect } from "../x509/identity.ts";
import { FEW } from "./limits.ts";
import type { ServerMeter } from "./meter.ts";
import { METHODS } from "./roles.ts";
import type { Refusal } from "./tls.ts";

const MAX_PATH_CHARS = 256;

/** Records refused connections: the first few of each minute one by one, and then how many more there were. */
export function recordRefusals(
  audit: Pick<Audit, "write">,
  log: Logger,
  meter: ServerMeter,
  few: typeof FEW = FEW,
): Disposable & ((refusal: Refusal) => void) {
  const refused = { event: "connection", decision: "denied" } as const;
  const first = fewOf((rest) => void writeRecord(audit, log, { id: randomUUID(), ...refused, ...rest }), few);
  const record = ({ peer, reason, certificate }: Refusal): void => {
    meter.refusedConnection(reason);
    if (!first.pass(reason)) return;
    const presented = certificate && inspect(certificate);
    writeRecord(audit, log, {
      id: randomUUID(),
      ...refused,
      peer,
      reason,
      ...(presented && { presented: audited(presented) }),
    });
  };
  return Object.assign(record, { [Symbol.dispose]: () => first[Symbol.dispose]() });
}

/** The channel on which node:http2 tells that a request's headers have come. */
const STREAM_START = "http2.server.stream.start";

/**
 * Records the requests that grpc-js answers without an interceptor: methods that do not exist, and requests that are not
 * gRPC. Removes deadlines that are too far away from all requests. Returns a function that ends this.
 */
export function recordUnknownMethods({ audit, connections, few, meter, log }: Recording): () => void {
  function onStart(message: unknown): void {
    try {
      const request = startOf(message);
      // The channel is the whole process's, and has the streams of other servers too.
      if (!request || !connections.has(request.ends)) return;
      const { path, contentType, ends, headers } = request;
      if (isFar(headers[TIMEOUT])) delete headers[TIMEOUT];
      const known = METHODS.has(path);
      if (known && contentType.startsWith("application/grpc")) return;
      const reason = known ? "NOT_GRPC" : "UNKNOWN_METHOD";
      meter.refused(reason);
      if (!few.pass(`${connections.ownerOf(ends)}: ${reason}`)) return;
      const identity = connections.identify(ends);
      const certificate = identity.ok ? identity.principal : identity.certificate;
      writeRecord(audit, log, {
        id: randomUUID(),
        event: "call",
        method: path.slice(0, MAX_PATH_CHARS),
        peer: peerOf(ends),
        ...(certificate && { principal: audited(certificate) }),
        decision: "denied",
        reason,
        ...(!known && { code: "UNIMPLEMENTED" }),
      });
    } catch (error) {
      log.error({ err: error }, "an unknown method was not recorded");
    }
  }
  subscribe(STREAM_START, onStart);
  return () => void unsubscribe(STREAM_START, onStart);
}

const TIMEOUT = "grpc-timeout";
const UNITS_MS: Readonly<Record<string, number>> = { H: 3_600_000, M: 60_000, S: 1000 };

/**
 * Tells whether a deadline is later than a timer can wait. grpc-js takes a deadline of a month for one that is over. No
 * connection lasts a month, so the call needs no deadline.
 */
function isFar(timeout: IncomingHttpHeaders[string]): boolean {
  const [, count, unit] = /^(\d{1,8})([HMS])$/.exec(String(timeout)) ?? [];
  return Number(count) * (UNITS_MS[unit ?? ""] ?? 0) > 2 ** 31 - 1;
}

interface StreamStart {
  readonly stream: ServerHttp2Stream;
  readonly headers: IncomingHttpHeaders;
}

function startOf(message: unknown) {
  const socket = isStreamStart(message) && message.stream.session?.socket;
  if (!isStreamStart(message) || !socket) return undefined;
  const { localAddress, localPort, remoteAddress, remotePort } = socket;
  return {
    headers: message.headers,
    path: message.headers[":path"] ?? "",
    contentType: message.headers["content-type"] ?? "",
    ends: { localAddress, localPort, remoteAddress, remotePort },
  };
}

/** Checks a message of the channel: node:diagnostics_channel documents it under "HTTP/2". */
function isStreamStart(message: unknown): message is StreamStart {
  return typeof message === "object" && message !== null && "stream" in message && "headers" in message;
}
