import { randomUUID } from "node:crypto";
import { join } from "node:path";
import type { Writable } from "node:stream";
import { setImmediate as nextTurn } from "node:timers/promises";
import type { TLSSocket } from "node:tls";
import { type ConnectionInjector, type Metadata, Server, ServerCredentials } from "@grpc/grpc-js";
import type { Logger } from "pino";
import { HealthService } from "../../proto/generated/grpc/health/v1/health.ts";
import { nativeDirectory } from "../os/native.ts";
import type { Worker } from "../worker/index.ts";
import type { CrlFile } from "../x509/crl.ts";
import type { TlsPem } from "../x509/pem.ts";
import { type Audit, openAudit, writeRecord } from "./audit.ts";
import { auditCalls } from "./audit-calls.ts";
import type { AuditLimits } from "./audit-file.ts";
import { authorise } from "./authorise.ts";
import { type Connections, connectionTable } from "./connections.ts";
import { fewOf } from "./few.ts";
import { type Caller, type Handlers, handlers } from "./guard.ts";
import { type Health, health, serveHealth } from "./health.ts";
import { AUDIT_LIMITS, grpcOptions, MAX_CALLS, MAX_CONNECTIONS } from "./limits.ts";
import { metered, NO_METER, type ServerFigures, type ServerMeter } from "./meter.ts";
import { jobsOf, type Owners } from "./owners.ts";
import { recordRefusals, recordUnknownMethods } from "./refusals.ts";
import { REFLECTION, reflection } from "./reflection.ts";
import type { FaultyLists } from "./revocation.ts";
import { workerService } from "./service.ts";
import { type Shares, shares, sums } from "./shares.ts";
import { strictly } from "./requests.ts";
import { SERVICE } from "./stream.ts";
import { listenTls, type TlsListener } from "./tls.ts";
import { NO_TRACING, type Tracing } from "./tracing.ts";
import { fairTurns } from "./turns.ts";

export interface ServeOptions {
  /** Closing the server does not close the worker. */
  readonly worker: Worker;
  /** Whether clients see each other's jobs; "shared" when absent. */
  readonly owners?: Owners | undefined;
  readonly host: string;
  /** 0 takes a free one. */
  readonly port: number;
  readonly tls: TlsPem;
  /** The lists of revoked certificates, by readCrls(); nobody is revoked when absent. */
  readonly crls?: CrlFile | undefined;
  /** What becomes of clients of a CA whose list has expired or is missing; `refuse` when absent. */
  readonly faultyLists?: FaultyLists | undefined;
  /** Path of the built verify.c; that of a checkout when absent. */
  readonly verifier?: string | undefined;
  /** The path of a UNIX socket for health checks without a certificate; none when absent. */
  readonly healthSocket?: string | undefined;
  /** The audit log: a file's path, or a stream. */
  readonly audit: string | Writable;
  /** Limits of the audit log where it is a file; those that are absent are those of AUDIT_LIMITS. */
  readonly auditLimits?: Partial<AuditLimits>;
  readonly log: Logger;
  readonly meter?: ServerMeter | undefined;
  /** Makes spans of calls and jobs; none when absent. */
  readonly tracing?: Tracing | undefined;
  /** How long a shutdown waits for calls that are being answered, in ms. */
  readonly shutdownMs: number;
  /** How many connections all clients have at once; 1024 when absent. One client has a half at most: shares.ts. */
  readonly maxConnections?: number | undefined;
  /** How many calls all clients have at once, likewise; 4096 when absent. */
  readonly maxCalls?: number | undefined;
}

/** What may change under open connections. A limit that is absent has its default. */
export interface Renewal extends Pick<ServeOptions, "tls" | "crls"> {
  readonly limits?: Pick<ServeOptions, "auditLimits" | "shutdownMs" | "maxConnections" | "maxCalls">;
}

export interface Served {
  readonly port: number;
  readonly address: string;
  /**
   * Checks what the server is to go on with; without `limits` they stay. Returns what takes it, which cannot fail, and which
   * the caller calls at once. With `limits` the audit log is opened anew, since its path may name another file now. Throws
   * ServeError, or Node's error when the audit log cannot be opened.
   */
  renew(next: Renewal): () => void;
  /** What the server has open now, and the certificates and lists that it uses. */
  figures(): ServerFigures;
  /** Ends streams with UNAVAILABLE, lets other calls finish, and is done after `shutdownMs` at the latest. */
  close(): Promise<void>;
}

/**
 * Serves a worker over gRPC with mutual TLS 1.3, audit and authorisation.
 *
 * @throws ServeError when a PEM is wrong or the port cannot be had; Node's error when the audit log cannot be opened
 */
export async function serve({
  worker,
  owners = "shared",
  host,
  port,
  tls,
  crls,
  faultyLists,
  verifier = join(nativeDirectory(), "verify.node"),
  healthSocket,
  audit: target,
  auditLimits,
  log,
  meter = NO_METER,
  tracing = NO_TRACING,
  shutdownMs,
  maxConnections = MAX_CONNECTIONS,
  maxCalls = MAX_CALLS,
}: ServeOptions): Promise<Served> {
  using opening = new DisposableStack();
  const opened = openAudit(target, { ...AUDIT_LIMITS, ...auditLimits }, (error) =>
    log.error({ err: error }, "the audit log goes on in the same file, or keeps more than it should"),
  );
  const audit = opening.adopt(metered(opened, meter), (each) => each.close());
  const few = opening.use(
    fewOf((rest) => writeRecord(audit, log, { id: randomUUID(), event: "call", decision: "denied", ...rest })),
  );
  const onRefused = opening.use(recordRefusals(audit, log, meter));
  const connections = connectionTable(maxConnections);
  const room = { calls: shares(maxCalls), turns: fairTurns(), requests: sums(), unread: sums() };
  const callers = new WeakMap<Metadata, Caller>();
  const calls = handlers(callers, log);
  const probe = health();
  const recording = { audit, connections, few, meter, tracing, log };
  const interceptors = [auditCalls(recording, room), authorise(connections, callers, room, log)];
  const injectors = openInjectors((most) => {
    const server = new Server({ ...grpcOptions(Math.ceil(most / 2)), interceptors });
    const own = (): ReturnType<TlsListener["findings"]> => listener.findings();
    server.addService(strictly(SERVICE), workerService(jobsOf(worker, owners), calls, { ...recording, own }));
    server.addService(HealthService, probe.service(calls));
    for (const each of REFLECTION) server.addService(strictly(each), reflection(calls));
    return server;
  }, maxCalls);
  opening.defer(recordUnknownMethods(recording));
  if (healthSocket !== undefined)
    opening.adopt(await serveHealth(healthSocket, probe, log), (each) => each.forceShutdown());
  const on = { onConnection: injectors.inject, onRefused, onRevoked: calls.endDenied };
  const listener = await listenTls({ host, port, tls, crls, faultyLists, verifier, log, connections, ...on });
  const open = opening.move();
  const patience = { shutdownMs };
  let closed: Promise<void> | undefined;
  return {
    port: listener.port,
    address: listener.address,
    renew: (next) => renewal({ listener, audit, connections, calls: room.calls, injectors, patience }, next),
    figures: () => ({ connections: connections.sockets().length, certificates: listener.certificates() }),
    close: () =>
      (closed ??= drain({ probe, listener, calls, injectors, connections, ...patience }).finally(() => open.dispose())),
  };
}

/** The parts of a server that may be told to go on differently. */
interface Renewed {
  readonly listener: TlsListener;
  readonly audit: Audit;
  readonly connections: Connections;
  readonly calls: Shares;
  readonly injectors: Injectors;
  readonly patience: { shutdownMs: number };
}

function renewal({ listener, audit, connections, calls, injectors, patience }: Renewed, next: Renewal): () => void {
  const { limits } = next;
  const takeTls = listener.renew(next);
  if (!limits) return takeTls;
  const { auditLimits, maxConnections = MAX_CONNECTIONS, maxCalls = MAX_CALLS, shutdownMs } = limits;
  const takeAudit = audit.reopen({ ...AUDIT_LIMITS, ...auditLimits });
  return () => {
    takeTls();
    takeAudit();
    connections.resize(maxConnections);
    calls.resize(maxCalls);
    injectors.resize(maxCalls);
    patience.shutdownMs = shutdownMs;
  };
}

/** What hands connections to gRPC. */
interface Injectors {
  readonly inject: (socket: TLSSocket) => void;
  /** Lets one client have half so many calls on a connection; connections that are open keep the number that they were told. */
  resize(maxCalls: number): void;
  destroy(): void;
}

/** @param serverFor makes a server whose clients have so many calls together */
function openInjectors(serverFor: (maxCalls: number) => Server, maxCalls: number): Injectors {
  // grpc-js takes the connections for insecure: what is injected is a TLS connection that has been verified.
  const injectorFor = (most: number): ConnectionInjector =>
    serverFor(most).createConnectionInjector(ServerCredentials.createInsecure());
  const all = new Map([[maxCalls, injectorFor(maxCalls)]]);
  let current = maxCalls;
  return {
    inject: (socket) => all.get(current)?.injectConnection(socket),
    resize(most) {
      if (!all.has(most)) all.set(most, injectorFor(most));
      current = most;
    },
    destroy() {
      for (const injector of all.values()) injector.destroy();
    },
  };
}

interface Serving {
  readonly probe: Health;
  readonly listener: TlsListener;
  readonly calls: Handlers;
  readonly injectors: Injectors;
  readonly connections: Connections;
  readonly shutdownMs: number;
}

/** Ends what lasts, waits for other calls up to `shutdownMs`, and ends all connections. */
async function drain({ probe, listener, calls, injectors, connections, shutdownMs }: Serving): Promise<void> {
  probe.stopServing();
  listener.stop();
  calls.end();
  // grpc-js loses sight of injected connections once it was asked to shut down, so they are waited for here.
  injectors.destroy();
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<void>((resolve) => (timer = setTimeout(resolve, shutdownMs)));
  await Promise.race([connections.empty(), late]);
  clearTimeout(timer);
  connections.destroy();
  await connections.empty();
  // grpc-js tells handlers and interceptors of the end one turn later; they write the last records.
  await nextTurn();
}
