import { isIPv6, type Socket } from "node:net";
import { endsKey, peerOf, type Ends } from "./connections.ts";
import { HANDSHAKE_TIMEOUT_MS, MAX_HANDSHAKES, MAX_SILENT } from "./limits.ts";
import { fairTurns } from "./turns.ts";

/** Connections of which nobody knows yet whose they are. */
export interface Handshakes {
  /** Takes a connection in, and begins its handshake when its first byte has come and its turn. */
  arrive(socket: Socket): void;
  /** The handshake between these ends is over; false when it was over before. */
  done(ends: Ends): boolean;
  /** Ends all of them. */
  stop(): void;
}

interface Arrival {
  readonly socket: Socket;
  readonly key: string;
  readonly peer: string;
  readonly network: string;
}

/** Why a connection went before its handshake was over. */
type HandshakeRefusal = "CLIENT_GONE" | "ECONNRESET" | "SILENT" | "TOO_MANY_HANDSHAKES";

/**
 * Bounds what strangers cost. A connection without a byte takes a descriptor and nothing more; one that has spoken takes
 * a TLS state, and a signature once its hello is whole. Of either kind there are so many, and where there is one more the
 * network that has the most loses its oldest. Handshakes begin network by network, one in a turn of the event loop.
 *
 * @param refuse is told of each that went otherwise than by `done`
 */
export function openHandshakes(
  begin: (socket: Socket) => void,
  refuse: (peer: string, reason: HandshakeRefusal) => void,
): Handshakes {
  const open = new Map<string, Arrival>();
  const [silent, speaking] = [crowd(), crowd()];
  const turns = fairTurns(0);
  let sweeping = false;

  function end(key: string): boolean {
    const arrival = open.get(key);
    if (!arrival) return false;
    open.delete(key);
    if (!silent.delete(arrival)) speaking.delete(arrival);
    return true;
  }

  function drop({ key, peer, socket }: Arrival, reason: HandshakeRefusal): void {
    if (end(key)) refuse(peer, reason);
    socket.destroy();
  }

  function thin(pool: Crowd, most: number): void {
    while (pool.size() > most) {
      const oldest = pool.oldestOfMost();
      if (!oldest) return;
      drop(oldest, "TOO_MANY_HANDSHAKES");
    }
  }

  /** Those that arrived in one turn of the event loop can be read in the next one: nobody goes before. */
  function sweepSoon(): void {
    if (sweeping || silent.size() <= MAX_SILENT) return;
    sweeping = true;
    setImmediate(() =>
      setImmediate(() => {
        sweeping = false;
        thin(silent, MAX_SILENT);
      }),
    );
  }

  function speak(arrival: Arrival): void {
    const { socket, network } = arrival;
    if (!silent.delete(arrival)) return;
    socket.setTimeout(0);
    speaking.add(arrival);
    thin(speaking, MAX_HANDSHAKES);
    turns.take(network, () => {
      if (socket.destroyed) return false;
      begin(socket);
      return true;
    });
  }

  return {
    arrive(socket) {
      const [key, peer] = [endsKey(socket), peerOf(socket)];
      if (key === undefined) {
        refuse(peer, "ECONNRESET");
        socket.destroy();
        return;
      }
      const arrival = { socket, key, peer, network: networkOf(socket) };
      open.set(key, arrival);
      silent.add(arrival);
      socket.once("readable", () => speak(arrival));
      socket.once("close", () => drop(arrival, "CLIENT_GONE"));
      socket.on("error", () => socket.destroy());
      socket.setTimeout(HANDSHAKE_TIMEOUT_MS, () => drop(arrival, "SILENT"));
      sweepSoon();
    },
    done: (ends) => end(endsKey(ends) ?? ""),
    stop() {
      const all = [...open.values()];
      open.clear();
      for (const { socket } of all) socket.destroy();
    },
  };
}

/** Those of one network in the order that they came in. */
interface Crowd {
  add(arrival: Arrival): void;
  /** False when it was not there. */
  delete(arrival: Arrival): boolean;
  size(): number;
  /** Of the network that has the most. */
  oldestOfMost(): Arrival | undefined;
}

function crowd(): Crowd {
  const networks = new Map<string, Set<Arrival>>();
  let size = 0;
  return {
    add(arrival) {
      const members = networks.get(arrival.network);
      if (members) members.add(arrival);
      else networks.set(arrival.network, new Set([arrival]));
      size++;
    },
    delete(arrival) {
      const members = networks.get(arrival.network);
      if (!members?.delete(arrival)) return false;
      if (members.size === 0) networks.delete(arrival.network);
      size--;
      return true;
    },
    size: () => size,
    oldestOfMost() {
      let most: Set<Arrival> | undefined;
      for (const members of networks.values()) if (members.size > (most?.size ?? 0)) most = members;
      return most?.values().next().value;
    },
  };
}

/** The address, or of IPv6 the first half of it: a host has all that share it. */
export function networkOf({ remoteAddress = "" }: Pick<Socket, "remoteAddress">): string {
  if (!isIPv6(remoteAddress)) return remoteAddress;
  const mapped = /^::ffff:([\d.]+)$/i.exec(remoteAddress)?.[1];
  if (mapped !== undefined) return mapped;
  const [head = "", tail] = remoteAddress.split("::");
  const groups = head.split(":").filter(Boolean);
  const last = tail?.split(":").filter(Boolean) ?? [];
  const zeros = tail === undefined ? 0 : 8 - groups.length - last.length;
  return [...groups, ...Array.from({ length: zeros }, () => "0"), ...last].slice(0, 4).join(":");
}
