import { isIP } from "node:net";
import { checkServerIdentity, createSecureContext, type PeerCertificate, type SecureContext } from "node:tls";
import { ChannelCredentials } from "@grpc/grpc-js";
import { reasonOf } from "../os/errno.ts";
import { unmapped } from "../x509/address.ts";
import { PemError, parseTls, type TlsPem } from "../x509/pem.ts";
import { ClientError } from "./errors.ts";

export interface Target {
  /** The host without brackets. */
  readonly host: string;
  readonly port: number;
}

/** Reads `HOST:PORT`. Throws ClientError INVALID_ARGUMENT naming `field`; port 0 is one to listen on, not to call. */
export function parseTarget(text: string, field = "server"): Target {
  const [, bracketed, plain, port] = /^(?:\[([^\]]*)\]|([^:[\]/\s]+)):(\d{1,5})$/.exec(text) ?? [];
  const host = bracketed ?? plain;
  if (host === undefined || (bracketed !== undefined && isIP(bracketed) !== 6) || Number(port) > 65535) {
    const right = "HOST:PORT, as in worker.example:7443, 192.0.2.1:7443 or [2001:db8::1]:7443";
    throw new ClientError("INVALID_ARGUMENT", `${field}: ${JSON.stringify(text)} is not an address; give ${right}`, {
      field,
    });
  }
  return { host: unmapped(host), port: Number(port) };
}

/** `HOST:PORT` again, an IPv6 address in brackets. */
export function formatTarget({ host, port }: Target): string {
  return isIP(host) === 6 ? `[${host}]:${port}` : `${host}:${port}`;
}

/** TLS 1.3 only. Throws ClientError UNAUTHENTICATED when the files cannot be used; its message says which, and why. */
export function secureContext(given: TlsPem): SecureContext {
  try {
    // An intermediate CA that is given is trusted for what it signed, although its root is not given.
    return createSecureContext({ ...parseTls(given).pem, minVersion: "TLSv1.3", allowPartialTrustChain: true });
  } catch (cause) {
    const why = reasonOf(cause);
    const message = cause instanceof PemError ? why : `the CA, certificate and key cannot be used: ${why}`;
    throw new ClientError("UNAUTHENTICATED", message, { reason: "BAD_CREDENTIALS", cause });
  }
}

/** Checks a server's certificate for a host, by its subject alternative names alone: RFC 9525, 6.3. */
export function checkServer(host: string, certificate: PeerCertificate): Error | undefined {
  // Node would take the common name where there is no alternative name.
  return checkServerIdentity(host.replace(/%.*$/, ""), { ...certificate, subject: { ...certificate.subject, CN: "" } });
}

/**
 * Credentials and channel options for a target. TLS has no server name that is an IP address (RFC 6066, 3), and Node
 * refuses to send one, so for an address another name is sent, and the certificate is checked for the address.
 */
export function channelFor(
  context: SecureContext,
  { host }: Target,
): { readonly credentials: ChannelCredentials; readonly options: Readonly<Record<string, string>> } {
  if (isIP(host) === 0) {
    return {
      credentials: ChannelCredentials.createFromSecureContext(context, { checkServerIdentity: checkServer }),
      options: {},
    };
  }
  const checkServerIdentity = (_name: string, certificate: PeerCertificate) => checkServer(host, certificate);
  return {
    credentials: ChannelCredentials.createFromSecureContext(context, { checkServerIdentity }),
    options: { "grpc.ssl_target_name_override": "worker.invalid" },
  };
}
