import { X509Certificate } from "node:crypto";
import { isIP } from "node:net";
import type { TLSSocket } from "node:tls";
import { unmapped } from "../x509/address.ts";
import { identify, type Identity, type Refused } from "../x509/identity.ts";
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
 * The open connections that TLS has verified, and their clients. grpc-js's getAuthContext() returns a call's certificate
 * too, but takes 0.16 ms to describe it each time.
 */
export interface Connections {
  /**
   * Takes a connection in. A connection beyond its client's share is `over`: it stays for a moment, so that its calls are
   * told why they are refused. Where many such stay already it is `refused` and destroyed. A connection that the other side
   * has `reset` meanwhile is destroyed.
   *
   * @param revoked is asked at every call whether the certificate, or one of its chain, has been revoked
   */
  add(socket: TLSSocket, certificate: X509Certificate, revoked?: Revoked): "in" | "over" | "refused" | "reset";
  /** Returns the client whose share the connection counts in: see `shareOf`. */
  ownerOf(ends: Ends): string;
  /** Returns the limit that the connection is beyond; undefined when it is `in`. */
  overOf(ends: Ends): Full | undefined;
  /** Tells who is at the other end; refused when the connection is not in the table, or its certificate is not valid now or is revoked. */
  identify(ends: Ends): Identity;
  has(ends: Ends): boolean;
  sockets(): readonly TLSSocket[];
  /** Changes how many connections all clients have at once. Those beyond that stay. */
  resize(most: number): void;
  /** The connections whose clients are revoked by now, and why. */
  refused(): readonly (readonly [TLSSocket, Refused["reason"]])[];
  /** Resolves when no connection is left. */
  empty(): Promise<void>;
  destroy(): void;
}

/** Says why a client is refused whose certificate would do otherwise; undefined when it is not. */
export type Revoked = () => Refused | undefined;

interface Connection {
  readonly socket: TLSSocket;
  readonly der: Uint8Array;
  readonly revoked: Revoked;
  readonly owner: string;
  readonly over?: Full;
}

const NO_CERTIFICATE: Identity = {
  ok: false,
  reason: "NO_CERTIFICATE",
  message: "the connection has no verified client certificate",
};

/** @param most how many connections all clients have at once */
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
    add(socket, certificate, revoked = () => undefined) {
      const key = endsKey(socket);
      if (key === undefined) {
        socket.destroy();
        return "reset";
      }
      const connection = { socket, der: certificate.raw, revoked, owner: shareOf(identify(certificate.raw)) };
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
      return connection ? identityOf(connection) : NO_CERTIFICATE;
    },
    has: (ends) => open.has(endsKey(ends) ?? ""),
    sockets: () => [...open.values()].map(({ socket }) => socket),
    resize: (next) => kept.resize(next),
    refused: () =>
      [...open.values()].flatMap(({ socket, revoked }) => {
        const refusal = revoked();
        return refusal ? [[socket, refusal.reason]] : [];
      }),
    empty: () => (open.size === 0 ? Promise.resolve() : new Promise((resolve) => (emptied = resolve))),
    destroy() {
      for (const { socket } of open.values()) socket.destroy();
    },
  };
}

function identityOf({ der, revoked }: Connection): Identity {
  const identity = identify(der);
  const refused = identity.ok ? revoked() : undefined;
  return identity.ok && refused ? { ...refused, certificate: identity.principal } : identity;
}

/**
 * Names the client: the role and the subject. The certificate would give whoever renews it a second share. All
 * certificates without a valid role have one share together.
 */
function shareOf(identity: Identity): string {
  return identity.ok ? `${identity.principal.role} ${identity.principal.subject}` : "";
}

/** Returns a key for both ends; undefined when the connection has been reset, and has no addresses any more. */
export function endsKey({ localAddress, localPort, remoteAddress, remotePort }: Ends): string | undefined {
  if (localAddress === undefined || remoteAddress === undefined) return undefined;
  return `${remoteAddress} ${remotePort} ${localAddress} ${localPort}`;
}

/** Returns `ADDRESS:PORT` of the other side; an IPv4 address that is mapped into IPv6 (`::ffff:192.0.2.1`) as IPv4. */
export function peerOf({ remoteAddress, remotePort }: Ends): string {
  if (remoteAddress === undefined) return "unknown";
  const address = unmapped(remoteAddress);
  return isIP(address) === 6 ? `[${address}]:${remotePort}` : `${address}:${remotePort}`;
}
