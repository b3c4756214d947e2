import { isIP } from "node:net";
import { checkServerIdentity, createSecureContext, type SecureContext } from "node:tls";
import { ChannelCredentials } from "@grpc/grpc-js";
import { ClientError } from "./errors.ts";

/** Who to call, and with what to prove who calls: PEM, the CA's certificate, an own certificate and its key. */
export interface Credentials {
  /** `HOST:PORT`: a name, an IPv4 address, or an IPv6 address in brackets. */
  readonly server: string;
  readonly ca: string | Buffer;
  readonly cert: string | Buffer;
  readonly key: string | Buffer;
}

export interface Target {
  /** Without brackets. */
  readonly host: string;
  readonly port: number;
}

/** Reads `HOST:PORT`. Throws ClientError INVALID_ARGUMENT naming `field`; port 0 is one to listen on, not to call. */
export function parseTarget(text: string, field = "server"): Target {
  const [, bracketed, plain, port] = /^(?:\[([^\]]*)\]|([^:[\]/\s]+)):(\d{1,5})$/.exec(text) ?? [];
  const host = bracketed ?? plain;
  if (host === undefined || (bracketed !== undefined && isIP(bracketed) !== 6) || Number(port) > 65535) {
    const right = "HOST:PORT is right, as in worker.example:7443, 192.0.2.1:7443 or [2001:db8::1]:7443";
    throw new ClientError("INVALID_ARGUMENT", `${field}: ${JSON.stringify(text)} is no address: ${right}`, { field });
  }
  return { host, port: Number(port) };
}

/** `HOST:PORT` again, an IPv6 address in brackets. */
export function formatTarget({ host, port }: Target): string {
  return isIP(host) === 6 ? `[${host}]:${port}` : `${host}:${port}`;
}

/** TLS 1.3 only. Throws ClientError UNAUTHENTICATED when the PEMs are no PEM or do not belong together. */
export function secureContext({ ca, cert, key }: Credentials): SecureContext {
  try {
    return createSecureContext({ ca, cert, key, minVersion: "TLSv1.3" });
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new ClientError("UNAUTHENTICATED", `the CA, certificate and key cannot be used: ${why}`, {
      reason: "BAD_CREDENTIALS",
      cause,
    });
  }
}

/**
 * Credentials and channel options for a target. TLS has no server name that is an IP address (RFC 6066, 3), and Node
 * refuses to send one, so for an address another name is sent, and the certificate is checked for the address.
 */
export function channelFor(
  context: SecureContext,
  { host }: Target,
): { readonly credentials: ChannelCredentials; readonly options: Readonly<Record<string, string>> } {
  if (isIP(host) === 0) return { credentials: ChannelCredentials.createFromSecureContext(context), options: {} };
  const identity = {
    checkServerIdentity: (_name: string, cert: Parameters<typeof checkServerIdentity>[1]) =>
      checkServerIdentity(host, cert),
  };
  return {
    credentials: ChannelCredentials.createFromSecureContext(context, identity),
    options: { "grpc.ssl_target_name_override": "worker.invalid" },
  };
}
