import { X509Certificate } from "node:crypto";
import { isIP } from "node:net";
import type { TLSSocket } from "node:tls";
import { unmapped } from "../x509/address.ts";
import { identify, type Identity } from "../x509/identity.ts";
import { MAX_CONNECTIONS_TOLD, TOLD_MS } from "./limits.ts";
import { shares, type Full, type Shares } from "./shares.ts";

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
  /**
   * Takes a connection in. Where its client has as many as they may have, it is `over`: it stays for a moment, so that its
   * calls are told, or where many such do already it is `refused` and destroyed, as one that is `reset` by now.
   */
  add(socket: TLSSocket, certificate: X509Certificate): "in" | "over" | "refused" | "reset";
  /** Whose the connection is, for what clients share: see `shareOf`. */
  ownerOf(ends: Ends): string;
  /** What kept the connection from being one more of its client's; undefined when nothing did. */
  overOf(ends: Ends): Full | undefined;
  /** Who is at the other end; refused when the connection is not one of these, or its certificate does not hold now. */
  identify(ends: Ends): Identity;
  has(ends: Ends): boolean;
  /** Resolves when none is left. */
  empty(): Promise<void>;
  destroy(): void;
}

interface Connection {
  readonly socket: TLSSocket;
  readonly der: Uint8Array;
  readonly owner: string;
  readonly over?: Full;
}

const NO_CERTIFICATE: Identity = {
  ok: false,
  reason: "NO_CERTIFICATE",
  message: "the connection has no verified client certificate",
};

/** @param most connections at once, of all clients */
export function connectionTable(most: number): Connections {
  const open = new Map<string, Connection>();
  const [kept, told] = [shares(most), shares(MAX_CONNECTIONS_TOLD)];
  let emptied: (() => void) | undefined;

  function keep(key: string, connection: Connection, among: Shares): void {
    const { socket, owner } = connection;
    open.set(key, connection);
    among.take(owner);
    socket.once("close", () => {
      open.delete(key);
      among.give(owner);
      if (open.size === 0) emptied?.();
    });
  }

  return {
    add(socket, certificate) {
      const key = endsKey(socket);
      if (key === undefined) {
        socket.destroy();
        return "reset";
      }
      const connection = { socket, der: certificate.raw, owner: shareOf(identify(certificate.raw)) };
      const over = kept.full(connection.owner);
      if (!over) {
        keep(key, connection, kept);
        return "in";
      }
      if (told.full(connection.owner)) {
        socket.destroy();
        return "refused";
      }
      keep(key, { ...connection, over }, told);
      const timer = setTimeout(() => socket.destroy(), TOLD_MS).unref();
      socket.once("close", () => clearTimeout(timer));
      return "over";
    },
    ownerOf: (ends) => open.get(endsKey(ends) ?? "")?.owner ?? "",
    overOf: (ends) => open.get(endsKey(ends) ?? "")?.over,
    identify(ends) {
      const connection = open.get(endsKey(ends) ?? "");
      return connection ? identify(connection.der) : NO_CERTIFICATE;
    },
    has: (ends) => open.has(endsKey(ends) ?? ""),
    empty: () => (open.size === 0 ? Promise.resolve() : new Promise((resolve) => (emptied = resolve))),
    destroy() {
      for (const { socket } of open.values()) socket.destroy();
    },
  };
}

/**
 * Who shares: the role and the common name. Not the certificate: whoever renews theirs has several, and would have a share
 * with each. All whose certificates have no valid role have one share.
 */
function shareOf(identity: Identity): string {
  return identity.ok ? `${identity.principal.role} ${identity.principal.name}` : "";
}

/** Undefined when the connection has been reset: without addresses it cannot be told from others. */
export function endsKey({ localAddress, localPort, remoteAddress, remotePort }: Ends): string | undefined {
  if (localAddress === undefined || remoteAddress === undefined) return undefined;
  return `${remoteAddress} ${remotePort} ${localAddress} ${localPort}`;
}

/** `ADDRESS:PORT` of the other side; an IPv4 address that IPv6 has mapped (`::ffff:192.0.2.1`) is told as IPv4. */
export function peerOf({ remoteAddress, remotePort }: Ends): string {
  if (remoteAddress === undefined) return "unknown";
  const address = unmapped(remoteAddress);
  return isIP(address) === 6 ? `[${address}]:${remotePort}` : `${address}:${remotePort}`;
}
