import { constants, type X509Certificate } from "node:crypto";
import { createServer, type AddressInfo, type Server, type Socket } from "node:net";
import { createServer as createTlsServer, type TLSSocket } from "node:tls";
import type { Logger } from "pino";
import { type Fault, faultsOf, pathOf, presented } from "../x509/chain.ts";
import type { CrlFile } from "../x509/crl.ts";
import type { TlsFiles, TlsPem } from "../x509/pem.ts";
import { peerOf, type Connections, type Ends, type Revoked } from "./connections.ts";
import { type CertificateFinding, certificatesOf, findingsOf, type InHand, warnOf } from "./expiry.ts";
import { openHandshakes } from "./handshakes.ts";
import { BACKLOG, HANDSHAKE_TIMEOUT_MS, REFUSED_MS } from "./limits.ts";
import type { ServerCertificate } from "./meter.ts";
import { readTls, ServeError } from "./pem.ts";
import { type FaultyLists, revocation, type Revocation } from "./revocation.ts";

/** How often the server looks at its own certificates. */
const WATCH_MS = 24 * 3600 * 1000;

/** A connection that was refused: OpenSSL's or Node's reason, and the certificate that the client showed, if any. */
export interface Refusal {
  readonly peer: string;
  readonly reason: string;
  readonly certificate?: X509Certificate;
}

export interface TlsListener {
  readonly port: number;
  readonly address: string;
  /**
   * Checks files to go on with. Returns what takes them: handshakes that begin from then on use them, and connections stay,
   * but for those whose certificates no CA of these files stands behind. Throws ServeError for files that cannot work.
   */
  renew(next: Materials): () => void;
  /** The present certificates and lists, each of which ends by itself. */
  certificates(): readonly ServerCertificate[];
  /** What a doctor tells of these. */
  findings(): readonly CertificateFinding[];
  /** Takes no more connections, and ends handshakes that are not over. */
  stop(): void;
}

/** What connections are judged by. */
export interface Materials {
  readonly tls: TlsPem;
  /** The lists of revoked certificates, by readCrls(); nobody is revoked when absent. */
  readonly crls?: CrlFile | undefined;
}

interface ListenOptions extends Materials {
  readonly host: string;
  readonly port: number;
  /** What becomes of clients of a CA whose list has expired or is missing; `refuse` when absent. */
  readonly faultyLists?: FaultyLists | undefined;
  /** Path of the native module that verify.c is built to. */
  readonly verifier: string;
  readonly log: Logger;
  /** The table that verified connections go into. */
  readonly connections: Connections;
  readonly onConnection: (socket: TLSSocket) => void;
  readonly onRefused: (refusal: Refusal) => void;
  /** Is called when clients may be revoked that were not before; their connections end a moment later. */
  readonly onRevoked: () => void;
}

/**
 * Listens for TLS 1.3 connections whose client certificate is signed by the CA, for clients, valid now and not revoked. No session is
 * resumed, because a resumed session is not verified. TLS ends here and not in grpc-js, so that a refusal has a reason.
 *
 * @throws ServeError
 */
export async function listenTls(options: ListenOptions): Promise<TlsListener> {
  const { host, port, tls, crls, faultyLists = "refuse", verifier, log, connections, onRefused, onRevoked } = options;
  stopAtFirstFault(verifier);
  const revoked = crls && revocation(faultyLists, crls);
  // Files may be renewed during a handshake: what has begun with the old ones must satisfy the new ones, too.
  const handshakerOf = (files: TlsFiles): Handshaker =>
    openHandshaker(files, {
      ...options,
      revocation: revoked,
      refuse: (socket) => (files === current.files ? undefined : distrust(socket, current.files)),
      done: (socket) => handshakes.done(socket),
    });
  let current = handshakerOf(readTls(tls));
  const handshakes = openHandshakes(
    (socket) => current.begin(socket),
    (peer, reason) => onRefused({ peer, reason }),
  );
  const server = createServer((socket) => handshakes.arrive(socket));
  const { port: bound, address } = await listening(server, host, port, log);
  const inHand = (): InHand => ({ files: current.files, lists: revoked?.lists });
  const warn = (): void => warnOf(inHand(), log);
  warn();
  const timer = setInterval(warn, WATCH_MS).unref();
  const end = (socket: TLSSocket, reason: string, afterMs: number): void => {
    const certificate = socket.getPeerX509Certificate();
    onRefused({ peer: peerOf(socket), reason, ...(certificate && { certificate }) });
    setTimeout(() => socket.destroy(), afterMs).unref();
  };
  const watched = revoked?.watch(() => {
    onRevoked();
    for (const [socket, reason] of connections.refused()) end(socket, reason, REFUSED_MS);
    warn();
  });
  return {
    port: bound,
    address,
    renew(materials) {
      const next = handshakerOf(readTls(materials.tls));
      if (materials.crls) revoked?.requireNewer(materials.crls, next.files.authorities);
      return () => {
        const { files } = current;
        current = next;
        // Each signature that is verified holds the event loop.
        if (files.pem.ca !== next.files.pem.ca)
          for (const [socket, reason] of distrusted(connections, next.files)) end(socket, reason, 0);
        if (materials.crls) revoked?.replace(materials.crls);
        else warn();
      };
    },
    certificates: () => certificatesOf(inHand()),
    findings: () => findingsOf(inHand()),
    stop() {
      clearInterval(timer);
      watched?.[Symbol.dispose]();
      server.close();
      handshakes.stop();
    },
  };
}

/** One set of files, and what shakes hands with them. */
interface Handshaker {
  readonly files: TlsFiles;
  begin(socket: Socket): void;
}

interface HandshakerOptions extends Pick<ListenOptions, "log" | "connections" | "onConnection" | "onRefused"> {
  readonly revocation: Revocation | undefined;
  /** Says why a client that these files let in is not let in all the same. */
  readonly refuse: (socket: TLSSocket) => string | undefined;
  /** Is told of each handshake that is over; false when it was over before. */
  readonly done: (ends: Ends) => boolean;
}

function openHandshaker(files: TlsFiles, options: HandshakerOptions): Handshaker {
  const { log, connections, onConnection, onRefused, revocation, refuse, done } = options;
  const server = createTlsServer({
    ...files.pem,
    minVersion: "TLSv1.3",
    requestCert: true,
    // Node would drop the connection without a reason; it is dropped below.
    rejectUnauthorized: false,
    secureOptions: constants.SSL_OP_NO_TICKET,
    ALPNProtocols: ["h2"],
    handshakeTimeout: HANDSHAKE_TIMEOUT_MS,
  });
  server.on("tlsClientError", (error: NodeJS.ErrnoException, socket) => {
    // A client that has gone has no address any more. The end of its TCP connection is recorded instead.
    if (done(socket)) onRefused({ peer: peerOf(socket), reason: error.code ?? error.message });
    socket.destroy();
  });
  server.on("secureConnection", (socket) => {
    done(socket);
    let certificate: X509Certificate | undefined;
    let reason: string | undefined;
    let revoked: Revoked | undefined;
    try {
      certificate = socket.getPeerX509Certificate();
      reason = refusalOf(socket, certificate, files.authorities) ?? refuse(socket);
      if (reason === undefined) revoked = revocation?.of(presented(socket), files.authorities);
      reason ??= revoked?.()?.reason;
    } catch (error) {
      // A stranger's certificate must not end the process.
      log.error({ err: error }, "a client's certificate could not be looked at");
      reason = "CERTIFICATE_MALFORMED";
    }
    if (reason !== undefined || !certificate) {
      onRefused({ peer: peerOf(socket), reason: reason ?? "NO_CERTIFICATE", ...(certificate && { certificate }) });
      socket.destroy();
      return;
    }
    endWhenExpired(socket, certificate);
    const added = connections.add(socket, certificate, revoked);
    if (added === "over" || added === "refused")
      onRefused({ peer: peerOf(socket), reason: "TOO_MANY_CONNECTIONS", certificate });
    if (added === "in" || added === "over") onConnection(socket);
  });
  return { files, begin: (socket) => void server.emit("connection", socket) };
}

/** Finds the connections that these files would not let in, and why. */
function* distrusted(connections: Connections, files: TlsFiles): Generator<[TLSSocket, string]> {
  for (const socket of connections.sockets().filter(({ destroyed }) => !destroyed)) {
    let reason: string | undefined;
    try {
      reason = distrust(socket, files);
    } catch {
      reason = "CERTIFICATE_MALFORMED";
    }
    if (reason !== undefined) yield [socket, reason];
  }
}

/** Says why these files would not let in a client that earlier ones have let in; undefined when they would. */
function distrust(socket: TLSSocket, { authorities }: TlsFiles): string | undefined {
  const [leaf, ...others] = presented(socket);
  if (!leaf) return "NO_CERTIFICATE";
  const [fault] = faultsOf(pathOf(leaf, others, authorities), "client");
  return fault && faultCode(fault);
}

/** Has OpenSSL stop at the first fault of a chain, in this process from now on: see verify.c. */
function stopAtFirstFault(verifier: string): void {
  try {
    process.dlopen({ exports: {} }, verifier);
  } catch (error) {
    const message = `what verifies clients' certificates cannot be loaded from ${verifier}: npm run build makes it`;
    throw new ServeError("no-verifier", message, error);
  }
}

function refusalOf(
  socket: TLSSocket,
  certificate: X509Certificate | undefined,
  authorities: readonly X509Certificate[],
): string | undefined {
  if (!certificate) return "NO_CERTIFICATE";
  if (socket.isSessionReused()) return "SESSION_RESUMED";
  if (socket.authorized) return undefined;
  const code = String(socket.authorizationError);
  // Node has no name for some of OpenSSL's reasons, as for weak keys and signatures.
  if (code !== "UNSPECIFIED") return code;
  // The chain is followed by names: to verify a stranger's signatures would hold the event loop.
  const sent = presented(socket);
  const top = sent.at(-1);
  const root = authorities.find((authority) => top?.checkIssued(authority) && !top.raw.equals(authority.raw));
  const [fault] = faultsOf({ certificates: root ? [...sent, root] : sent }, "client");
  return fault ? faultCode(fault) : code;
}

function faultCode({ kind }: Fault): string {
  return `CERTIFICATE_${kind.toUpperCase().replaceAll("-", "_")}`;
}

/** Ends a connection with its certificate: a stream on it would outlive that. */
function endWhenExpired(socket: TLSSocket, certificate: X509Certificate): void {
  const leftMs = certificate.validToDate.getTime() - Date.now();
  // A timer can wait longer than MAX_CONNECTION_AGE.
  if (leftMs > 2 ** 31 - 1) return;
  const timer = setTimeout(() => socket.destroy(), leftMs).unref();
  socket.once("close", () => clearTimeout(timer));
}

function listening(server: Server, host: string, port: number, log: Logger): Promise<AddressInfo> {
  return new Promise((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) => {
      const where = `${host}:${port}`;
      const inUse = error.code === "EADDRINUSE";
      const message = inUse
        ? `${where} is in use: stop what listens there, or choose another port (0 takes a free one)`
        : `cannot listen on ${where}: ${error.message}`;
      reject(new ServeError(inUse ? "port-in-use" : "cannot-listen", message, error));
    });
    server.listen({ host, port, backlog: BACKLOG }, () => {
      const address = server.address();
      server.removeAllListeners("error");
      server.on("error", (error) => log.error({ err: error }, "listener failed"));
      if (address !== null && typeof address === "object") resolve(address);
    });
  });
}
