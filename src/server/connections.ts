import { X509Certificate } from "node:crypto";
import { isIP } from "node:net";
import type { TLSSocket } from "node:tls";
import { identify, type Identity } from "./identity.ts";

/** Both ends of a TCP connection, which no other open connection has. */
export interface Ends {
  readonly localAddress?: string | undefined;
  readonly localPort?: number | undefined;
  readonly remoteAddress?: string | undefined;
  readonly remotePort?: number | undefined;
}

/**
 * The open, verified connections and whose they are. grpc-js can tell a call's certificate too, by getAuthContext(),
 * but takes 0.16 ms to describe it anew each time.
 */
export interface Connections {
  /** False for a connection that has been reset by now. */
  add(socket: TLSSocket, certificate: X509Certificate): boolean;
  /** Who is at the other end; refused when the connection is not one of these, or its certificate does not hold now. */
  identify(ends: Ends): Identity;
  has(ends: Ends): boolean;
  /** Resolves when none is left. */
  empty(): Promise<void>;
  destroy(): void;
}

const NO_CERTIFICATE: Identity = {
  ok: false,
  reason: "NO_CERTIFICATE",
  message: "the connection has no verified client certificate",
};

export function connectionTable(): Connections {
  const open = new Map<string, { readonly socket: TLSSocket; readonly der: Uint8Array }>();
  let emptied: (() => void) | undefined;
  return {
    add(socket, certificate) {
      const key = keyOf(socket);
      if (key === undefined) {
        socket.destroy();
        return false;
      }
      open.set(key, { socket, der: certificate.raw });
      socket.once("close", () => {
        open.delete(key);
        if (open.size === 0) emptied?.();
      });
      return true;
    },
    identify(ends) {
      const connection = open.get(keyOf(ends) ?? "");
      return connection ? identify(connection.der) : NO_CERTIFICATE;
    },
    has: (ends) => open.has(keyOf(ends) ?? ""),
    empty: () => (open.size === 0 ? Promise.resolve() : new Promise((resolve) => (emptied = resolve))),
    destroy() {
      for (const { socket } of open.values()) socket.destroy();
    },
  };
}

/** Undefined when the connection has been reset: without addresses it cannot be told from others. */
export function keyOf({ localAddress, localPort, remoteAddress, remotePort }: Ends): string | undefined {
  if (localAddress === undefined || remoteAddress === undefined) return undefined;
  return `${remoteAddress} ${remotePort} ${localAddress} ${localPort}`;
}

/** `ADDRESS:PORT` of the other side; an IPv4 address that IPv6 has mapped (`::ffff:192.0.2.1`) is told as IPv4. */
export function peerOf({ remoteAddress, remotePort }: Ends): string {
  if (remoteAddress === undefined) return "unknown";
  const address = remoteAddress.replace(/^::ffff:(?=\d+\.\d+\.\d+\.\d+$)/i, "");
  return isIP(address) === 6 ? `[${address}]:${remotePort}` : `${address}:${remotePort}`;
}
