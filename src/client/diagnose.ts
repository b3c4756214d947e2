import { once } from "node:events";
import { isIP } from "node:net";
import { connect, type ConnectionOptions, type TLSSocket } from "node:tls";
import { reasonOf } from "../os/errno.ts";
import { type FaultKind, faultsOf, pathOf, presented, tell } from "../x509/chain.ts";
import { nameOf, parseTls, TlsFileError, type TlsPem } from "../x509/pem.ts";
import type { Credentials } from "./client.ts";
import { checkServer, formatTarget, parseTarget, secureContext } from "./target.ts";

type CertificateReason = "expired" | "not-yet-valid" | "weak" | "purpose" | "chain" | "untrusted";

/** Why there is no connection, for a program (`reason`) and for a person. */
export interface Diagnosis {
  readonly reason:
    | "refused"
    | "name-not-found"
    | "unreachable"
    | "timeout"
    | "closed"
    | "handshake-refused"
    | "not-tls"
    | "old-tls"
    | "not-http2"
    | `server-${CertificateReason}`
    | "server-name"
    | "own-unreadable"
    | "own-key"
    | `own-${CertificateReason}`
    | "own-refused"
    | "answers";
  readonly message: string;
  /** The next step for a person. */
  readonly remedy: string;
}

const TIMEOUT_MS = 5_000;
/** A worker that accepts a certificate speaks at once (HTTP/2 SETTINGS); one that does not closes. */
const VERDICT_TIMEOUT_MS = 2_000;

const REASONS: Readonly<Record<FaultKind, CertificateReason>> = {
  expired: "expired",
  "not-yet-valid": "not-yet-valid",
  "weak-key": "weak",
  "weak-signature": "weak",
  purpose: "purpose",
  malformed: "chain",
  "not-a-ca": "chain",
  "path-length": "chain",
  "critical-extension": "chain",
  "self-signed": "untrusted",
  "wrong-signature": "untrusted",
  "no-issuer": "untrusted",
};
/** The remedy for each fault, in the worker's certificate and in the own one. */
const REMEDIES: Readonly<Record<CertificateReason, { readonly server: string; readonly own: string }>> = {
  expired: {
    server: "the worker needs a new certificate, or its CA does; or check this machine's clock",
    own: "sign a new certificate (jobsctl certs sign); where a CA's has expired, that has to be renewed before",
  },
  "not-yet-valid": { server: "check this machine's clock", own: "check this machine's clock" },
  weak: {
    server: "the worker needs a certificate with RSA of 2048 bits or more and SHA-256",
    own: "sign a new certificate with RSA of 2048 bits or more and SHA-256: jobsctl certs request, jobsctl certs sign",
  },
  purpose: {
    server: "the worker needs a certificate for servers: jobsctl certs sign --role worker",
    own: "give a reader's or writer's certificate, not a worker's",
  },
  chain: { server: "the worker's chain has to be signed anew", own: "your chain has to be signed anew" },
  untrusted: {
    server:
      "give the certificate of the CA that signed the worker's; an intermediate CA's belongs behind the worker's own",
    own: "give a certificate that this CA signed (jobsctl certs sign), with its intermediate CA's behind it",
  },
};
/** The fault that each error code of OpenSSL stands for. */
const KINDS: ReadonlyMap<string, FaultKind> = new Map([
  ["CERT_HAS_EXPIRED", "expired"],
  ["CERT_NOT_YET_VALID", "not-yet-valid"],
  ["INVALID_PURPOSE", "purpose"],
  ["PATH_LENGTH_EXCEEDED", "path-length"],
]);

/**
 * Finds out why a worker cannot be reached, by one TLS connection and a look at the own certificate: grpc-js only
 * tells that there is no connection, and a worker does not tell a stranger why it refuses a certificate.
 */
export async function diagnose(credentials: Credentials, timeoutMs = TIMEOUT_MS): Promise<Diagnosis> {
  const unusable = unusableCredentials(credentials);
  if (unusable) return unusable;
  const where = formatTarget(parseTarget(credentials.server));
  const { socket, failure } = await handshake(credentials, timeoutMs);
  if (failure) return networkFailure(failure, where);
  try {
    return serverFault(socket, credentials, where) ?? (await verdict(socket, where, ownFault(credentials)));
  } finally {
    socket.destroy();
  }
}

/** Tells what is wrong with the files: one is unreadable, or the key belongs to another certificate. */
export function unusableCredentials(credentials: TlsPem): Diagnosis | undefined {
  try {
    secureContext(credentials);
    return undefined;
  } catch (error) {
    const message = reasonOf(error);
    const why = error instanceof Error ? error.cause : undefined;
    if (why instanceof TlsFileError && why.code === "mismatch") {
      return { reason: "own-key", message, remedy: "give the key that was made with this certificate's request" };
    }
    const remedy = "give PEM files: the CA's certificate, your certificate, and your certificate's private key";
    return { reason: "own-unreadable", message, remedy };
  }
}

type Failure = "timeout" | "silent" | { readonly code: string; readonly message: string };

/** A handshake, whatever the certificates are worth, or why there is none. */
async function handshake(
  credentials: Credentials,
  timeoutMs: number,
): Promise<{ readonly socket: TLSSocket; readonly failure?: Failure }> {
  const { host, port } = parseTarget(credentials.server);
  const options: ConnectionOptions = {
    host,
    port,
    ...parseTls(credentials).pem,
    allowPartialTrustChain: true,
    // An older TLS is let in, so that it can be told apart from a server without TLS.
    minVersion: "TLSv1.2",
    ALPNProtocols: ["h2"],
    rejectUnauthorized: false,
    checkServerIdentity: (_name, certificate) => checkServer(host, certificate),
  };
  const socket = connect({ ...options, ...(isIP(host) === 0 && { servername: host }) });
  socket.on("error", () => {});
  let connected = false;
  socket.once("connect", () => (connected = true));
  try {
    await once(socket, "secureConnect", { signal: AbortSignal.timeout(timeoutMs) });
    return { socket };
  } catch (error) {
    socket.destroy();
    if (error instanceof Error && error.name === "AbortError")
      return { socket, failure: connected ? "silent" : "timeout" };
    // A name with several addresses fails with one error for each.
    const first: unknown = error instanceof AggregateError ? error.errors[0] : error;
    const code = first instanceof Error && "code" in first ? String(first.code) : "";
    return { socket, failure: { code, message: reasonOf(first) } };
  }
}

function networkFailure(failure: Failure, where: string): Diagnosis {
  const running = "check the address, and that jobsd runs there and listens on it";
  if (failure === "timeout") {
    const remedy = "check the address, and that no firewall drops the connection";
    return { reason: "timeout", message: `${where} does not answer`, remedy };
  }
  if (failure === "silent") {
    const message = `something accepts connections at ${where} but does not answer in TLS`;
    return { reason: "not-tls", message, remedy: running };
  }
  const { code, message } = failure;
  if (code === "ECONNREFUSED") return { reason: "refused", message: `nobody listens at ${where}`, remedy: running };
  if (code === "ENOTFOUND" || code === "EAI_AGAIN" || code === "EAI_NODATA") {
    const remedy = "check the spelling, or give the IP address";
    return { reason: "name-not-found", message: `the name in ${where} cannot be resolved (${code})`, remedy };
  }
  if (code === "ETIMEDOUT" || code === "EHOSTUNREACH" || code === "ENETUNREACH") {
    const remedy = "check the address, the network and its firewalls";
    return { reason: code === "ETIMEDOUT" ? "timeout" : "unreachable", message: `${where}: ${code}`, remedy };
  }
  const [, alert] = /^ERR_SSL_.*_ALERT_(.+)$/.exec(code) ?? [];
  if (code === "ERR_SSL_UNSUPPORTED_PROTOCOL" || alert === "PROTOCOL_VERSION") return oldTls(where);
  if (alert === "NO_APPLICATION_PROTOCOL") return notHttp2(where);
  if (code === "ECONNRESET" || code === "EPIPE") {
    const closed = `${where} closed the connection before TLS had begun (${code})`;
    const remedy = "check that jobsd listens there and nothing else; its audit log says why, as where it has too many";
    return { reason: "closed", message: closed, remedy };
  }
  if (alert !== undefined) {
    const refused = `${where} refused the handshake (TLS alert ${alert.toLowerCase().replaceAll("_", " ")})`;
    return {
      reason: "handshake-refused",
      message: refused,
      remedy: "its log says why; a jobsd writes it to its audit log",
    };
  }
  const what = `what listens at ${where} is no TLS server (${code || message})`;
  return { reason: "not-tls", message: what, remedy: running };
}

function notHttp2(where: string): Diagnosis {
  const message = `what listens at ${where} speaks TLS but not HTTP/2 (ALPN h2), as jobsd does`;
  return {
    reason: "not-http2",
    message,
    remedy: "check the address: this is no jobsd, or a proxy ends TLS in between",
  };
}

function oldTls(where: string, version = "an older TLS"): Diagnosis {
  const message = `what listens at ${where} speaks ${version}; jobsd speaks TLS 1.3 only`;
  return { reason: "old-tls", message, remedy: "check the address: this is no jobsd, or a proxy stands in between" };
}

/** Examines the server's side of the handshake. */
function serverFault(socket: TLSSocket, credentials: Credentials, where: string): Diagnosis | undefined {
  const version = socket.getProtocol();
  if (version !== "TLSv1.3") return oldTls(where, version ?? undefined);
  if (socket.alpnProtocol !== "h2") return notHttp2(where);
  if (socket.authorized) return undefined;
  // Node declares an Error here; the value is an error's code.
  const code = String(socket.authorizationError);
  const [peer, ...others] = presented(socket);
  if (!peer) return told("server", "untrusted", `${where} shows no certificate (${code})`);
  const name = `the certificate of ${where}`;
  if (code === "ERR_TLS_CERT_ALTNAME_INVALID") {
    const names = peer.subjectAltName;
    const only = "has no subject alternative name, and a common name does not count";
    return {
      reason: "server-name",
      message: `${name} (${nameOf(peer)}) ${names === undefined ? only : `is made out to ${names}`}`,
      remedy: "call the worker by a name that its certificate has, or make it one with this name",
    };
  }
  const { authorities } = parseTls(credentials);
  const path = pathOf(peer, others, authorities);
  const faults = faultsOf(path, "server");
  const fault = path.end ?? faults.find(({ kind }) => kind === KINDS.get(code)) ?? faults[0];
  if (fault) return told("server", REASONS[fault.kind], tell(fault, name));
  return told("server", "untrusted", `${name} (${nameOf(peer)}) is not accepted (${code})`);
}

/** Returns the fault for which a worker that trusts the given CA refuses the own certificate. */
export function ownFault(credentials: TlsPem): Diagnosis | undefined {
  const { own, chain, authorities } = parseTls(credentials);
  const [fault] = faultsOf(pathOf(own, chain, authorities), "client");
  return fault && told("own", REASONS[fault.kind], tell(fault, "your certificate"));
}

function told(side: "server" | "own", reason: CertificateReason, message: string): Diagnosis {
  return { reason: `${side}-${reason}`, message, remedy: REMEDIES[reason][side] };
}

/**
 * Asks the worker about the own certificate: under TLS 1.3 a client's handshake is over before the server has looked
 * at it. `fault` is what can be seen of it from here.
 */
async function verdict(socket: TLSSocket, where: string, fault: Diagnosis | undefined): Promise<Diagnosis> {
  const signal = AbortSignal.timeout(VERDICT_TIMEOUT_MS);
  const spoke = once(socket, "data", { signal }).then(() => "spoke" as const);
  const closed = once(socket, "close", { signal }).then(() => "closed" as const);
  // An alert is a refusal as well. Silence is not.
  const seen = await Promise.race([spoke, closed]).catch(() => (signal.aborted ? ("silent" as const) : "closed"));
  if (seen !== "spoke" && fault) return fault;
  if (seen !== "closed") {
    const message = `${where} accepts the connection now`;
    return { reason: "answers", message, remedy: "try again; if it goes on, read the worker's log" };
  }
  const message = `${where} closed the connection when it saw your certificate`;
  const remedy =
    "nothing is wrong with it here: the worker trusts another CA, or its clock differs; its audit log says why";
  return { reason: "own-refused", message, remedy };
}
