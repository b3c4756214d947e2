import { isIPv6, type Socket } from "node:net";
import { endsKey, type Ends, peerOf } from "./connections.ts";
import { HANDSHAKE_TIMEOUT_MS, MAX_HANDSHAKES, MAX_SILENT } from "./limits.ts";
import { fairTurns } from "./turns.ts";

/** Connections of which nobody knows yet whose they are. */
export interface Handshakes {
  /** Takes a connection in. Its handshake begins when its first byte has come, in a turn of its network's. */
  arrive(socket: Socket): void;
  /** Says that the handshake between these ends is over; false when it was over before. */
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

/** Why a connection ended before its handshake was over. */
type HandshakeRefusal = "CLIENT_GONE" | "ECONNRESET" | "SILENT" | "TOO_MANY_HANDSHAKES";

/**
 * Bounds what strangers cost. A connection without a byte takes a descriptor and nothing more; a connection that has
 * spoken takes a TLS state, and a signature once its hello is whole. The number of either kind is bounded: one more than
 * that ends the oldest of the network that has the most. Handshakes begin network by network, one in each turn of the event loop.
 *
 * @param begin shakes hands
 * @param refuse is told of each connection that ended before `done`
 */
export function openHandshakes(
  begin: (socket: Socket) => void,
  refuse: (peer: string, reason: HandshakeRefusal) => void,
): Handshakes {
  const open = new Map<string, Arrival>();
  const [silent, speaking] = [crowd(MAX_SILENT), crowd(MAX_HANDSHAKES)];
  const turns = fairTurns(0);
  const tooMany = (arrival: Arrival): void => drop(arrival, "TOO_MANY_HANDSHAKES");
  // Connections that arrived in one turn of the event loop can be read in the next: nobody is ended before that.
  const thinSilent = afterNextTurn(() => silent.thin(tooMany));

  function end(key: string): boolean {
    const arrival = open.get(key);
    if (arrival && !silent.delete(arrival)) speaking.delete(arrival);
    return open.delete(key);
  }

  function drop({ key, peer, socket }: Arrival, reason: HandshakeRefusal): void {
    if (end(key)) refuse(peer, reason);
    socket.destroy();
  }

  function speak(arrival: Arrival): void {
    const { socket, network } = arrival;
    if (!silent.delete(arrival)) return;
    socket.setTimeout(0);
    speaking.add(arrival);
    speaking.thin(tooMany);
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
      if (silent.isOver()) thinSilent();
    },
    done: (ends) => end(endsKey(ends) ?? ""),
    stop() {
      const all = [...open.values()];
      open.clear();
      for (const { socket } of all) socket.destroy();
    },
  };
}

/** Calls `work` after the next turn of the event loop, once for all that ask before. */
function afterNextTurn(work: () => void): () => void {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    setImmediate(() =>
      setImmediate(() => {
        asked = false;
        work();
      }),
    );
  };
}

/** Connections of one kind, by their networks. */
interface Crowd {
  add(arrival: Arrival): void;
  /** False when the connection was not there. */
  delete(arrival: Arrival): boolean;
  isOver(): boolean;
  /** Drops the oldest connection of the network that has the most, until the limit is kept. */
  thin(drop: (arrival: Arrival) => void): void;
}

/** @param drop in `thin` has to delete what it is given */
function crowd(most: number): Crowd {
  /** The connections of each network, in the order in which they came. */
  const networks = new Map<string, Set<Arrival>>();
  let size = 0;
  function oldest(): Arrival | undefined {
    let largest: Set<Arrival> | undefined;
    for (const members of networks.values()) if (members.size > (largest?.size ?? 0)) largest = members;
    return largest?.values().next().value;
  }
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
    isOver: () => size > most,
    thin(drop) {
      while (size > most) {
        const next = oldest();
        if (!next) return;
        drop(next);
      }
    },
  };
}

/** The network of an address: an IPv4 address, or the first half of an IPv6 address, since a host has all that share it. */
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
