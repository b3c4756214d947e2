import { createPrivateKey, X509Certificate } from "node:crypto";
import { once } from "node:events";
import { connect, type ConnectionOptions, type TLSSocket } from "node:tls";
import { isIP } from "node:net";
import { type Credentials, formatTarget, parseTarget } from "./target.ts";

/** Why there is no connection, for a program (`reason`) and for a person. */
export interface Diagnosis {
  readonly reason:
    | "refused"
    | "name-not-found"
    | "unreachable"
    | "timeout"
    | "not-tls"
    | "old-tls"
    | "server-untrusted"
    | "server-expired"
    | "server-not-yet-valid"
    | "server-name"
    | "own-unreadable"
    | "own-key"
    | "own-expired"
    | "own-not-yet-valid"
    | "own-untrusted"
    | "own-purpose"
    | "own-refused"
    | "answers";
  readonly message: string;
  /** What to do. */
  readonly remedy: string;
}

const TIMEOUT_MS = 5_000;
/** A worker that accepts a certificate speaks at once (HTTP/2 SETTINGS); one that does not closes. */
const VERDICT_TIMEOUT_MS = 2_000;
const CLIENT_AUTH = "1.3.6.1.5.5.7.3.2";

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
    return serverFault(socket, where) ?? ownFault(credentials) ?? (await verdict(socket, where));
  } finally {
    socket.destroy();
  }
}

/** What is wrong with the PEMs themselves: unreadable, or a key of another certificate. */
export function unusableCredentials({ ca, cert, key }: Omit<Credentials, "server">): Diagnosis | undefined {
  const remedy = "give PEM files: the CA's certificate, your certificate, and your certificate's private key";
  const bad = (what: string, cause: unknown): Diagnosis => {
    const message = `${what} cannot be read: ${cause instanceof Error ? cause.message : String(cause)}`;
    return { reason: "own-unreadable", message, remedy };
  };
  const authority = reading(() => bundle(ca));
  if ("error" in authority) return bad("the CA's certificate", authority.error);
  const own = reading(() => new X509Certificate(cert));
  if ("error" in own) return bad("the certificate", own.error);
  const secret = reading(() => createPrivateKey(key));
  if ("error" in secret) return bad("the private key", secret.error);
  if (own.value.checkPrivateKey(secret.value)) return undefined;
  const message = `the key does not belong to the certificate (${subject(own.value)})`;
  return { reason: "own-key", message, remedy: "give the key that was made with this certificate's request" };
}

type Failure = "timeout" | "silent" | { readonly code: string; readonly message: string };

/** A handshake, whatever the certificates are worth, or why there is none. */
async function handshake(
  credentials: Credentials,
  timeoutMs: number,
): Promise<{ readonly socket: TLSSocket; readonly failure?: Failure }> {
  const { host, port } = parseTarget(credentials.server);
  const { ca, cert, key } = credentials;
  // An older TLS is let in to be told apart from what is no TLS.
  const options: ConnectionOptions = { host, port, ca, cert, key, minVersion: "TLSv1.2", ALPNProtocols: ["h2"] };
  const socket = connect({ ...options, ...(isIP(host) === 0 && { servername: host }), rejectUnauthorized: false });
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
    return { socket, failure: { code, message: first instanceof Error ? first.message : String(first) } };
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
  if (code === "ERR_SSL_UNSUPPORTED_PROTOCOL" || code === "ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION") return oldTls(where);
  const what = `what listens at ${where} is no TLS 1.3 server (${code || message})`;
  return { reason: "not-tls", message: what, remedy: running };
}

function oldTls(where: string, version = "an older TLS"): Diagnosis {
  const message = `what listens at ${where} speaks ${version}; jobsd speaks TLS 1.3 only`;
  return { reason: "old-tls", message, remedy: "check the address: this is no jobsd, or a proxy stands in between" };
}

/** What the server's side of the handshake is worth. */
function serverFault(socket: TLSSocket, where: string): Diagnosis | undefined {
  const version = socket.getProtocol();
  if (version !== "TLSv1.3") return oldTls(where, version ?? undefined);
  if (socket.authorized) return undefined;
  const peer = socket.getPeerX509Certificate();
  const name = peer ? `the certificate of ${where} (${subject(peer)})` : `the certificate of ${where}`;
  // Node types it as an Error; it is the code of one.
  const code = String(socket.authorizationError);
  switch (code) {
    case "CERT_HAS_EXPIRED":
      return {
        reason: "server-expired",
        message: `${name} expired on ${peer?.validTo}`,
        remedy: "the worker needs a new certificate; or check this machine's clock",
      };
    case "CERT_NOT_YET_VALID":
      return {
        reason: "server-not-yet-valid",
        message: `${name} is valid only from ${peer?.validFrom}`,
        remedy: "check this machine's clock",
      };
    case "ERR_TLS_CERT_ALTNAME_INVALID":
      return {
        reason: "server-name",
        message: `${name} is made out to ${peer?.subjectAltName ?? "no host"}`,
        remedy: "call the worker by a name that its certificate has, or make it one with this name",
      };
    default:
      return {
        reason: "server-untrusted",
        message: `${name} is not signed by the given CA (${code})`,
        remedy: "give the certificate of the CA that signed the worker's",
      };
  }
}

/** What a worker would refuse the own certificate for, as far as can be seen from here. */
export function ownFault({ ca, cert }: Credentials): Diagnosis | undefined {
  const own = new X509Certificate(cert);
  const authorities = bundle(ca);
  const name = `your certificate (${subject(own)})`;
  const renew = "sign a new certificate: jobs certs sign";
  if (own.validToDate < new Date()) {
    return { reason: "own-expired", message: `${name} expired on ${own.validTo}`, remedy: renew };
  }
  if (own.validFromDate > new Date()) {
    const remedy = "check this machine's clock";
    return { reason: "own-not-yet-valid", message: `${name} is valid only from ${own.validFrom}`, remedy };
  }
  if (!authorities.some((authority) => own.checkIssued(authority) && own.verify(authority.publicKey))) {
    const message = `${name} is not signed by the CA (${authorities.map(subject).join("; ")})`;
    return { reason: "own-untrusted", message, remedy: "give a certificate that this CA signed: jobs certs sign" };
  }
  if (own.keyUsage && !own.keyUsage.includes(CLIENT_AUTH)) {
    const message = `${name} is not made for a client`;
    return { reason: "own-purpose", message, remedy: "give a reader's or writer's certificate, not a worker's" };
  }
  return undefined;
}

/** Under TLS 1.3 a client's handshake is over before the server has looked at its certificate. */
async function verdict(socket: TLSSocket, where: string): Promise<Diagnosis> {
  const signal = AbortSignal.timeout(VERDICT_TIMEOUT_MS);
  const spoke = once(socket, "data", { signal }).then(() => true);
  const closed = once(socket, "close", { signal }).then(() => false);
  // An alert, too, is a refusal; silence is none.
  if (await Promise.race([spoke, closed]).catch(() => signal.aborted)) {
    const message = `${where} accepts the connection now`;
    return { reason: "answers", message, remedy: "try again; if it goes on, read the worker's log" };
  }
  const message = `${where} closed the connection when it saw your certificate`;
  const remedy = "it may be revoked, or the worker trusts another CA: its log and audit record say why";
  return { reason: "own-refused", message, remedy };
}

/** A CA file may hold the old and the new CA while one replaces the other. */
function bundle(ca: string | Buffer): X509Certificate[] {
  const blocks = ca.toString().match(/-----BEGIN CERTIFICATE-----[^]*?-----END CERTIFICATE-----/g);
  return (blocks ?? [ca]).map((pem) => new X509Certificate(pem));
}

/** As in "CN=ada, O=lab". */
export function subject(certificate: X509Certificate): string {
  return certificate.subject.replaceAll("\n", ", ");
}

function reading<Value>(make: () => Value): { value: Value } | { error: unknown } {
  try {
    return { value: make() };
  } catch (error) {
    return { error };
  }
}
