import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";

/* A real proxy before a server, which takes that away. */

/** How bytes pass: `trickle` lets answers through byte by byte, `hole` only the first bytes of each answer. */
export type Weather = "fair" | "refuse" | "cut" | "stall" | "trickle" | "hole";

/** A TCP proxy on a port of its own. */
export interface Proxy extends AsyncDisposable {
  readonly port: number;
  /** The first line of each request that came, as in `PUT /logs/w/j/output?x-id=PutObject HTTP/1.1`. */
  readonly requests: string[];
  /** Sets the weather of all connections; `cut` lets `bytes` of each request through, `hole` of each answer. */
  set(weather: Weather, bytes?: number): Promise<void>;
  /** Called with each request's first line before it goes on. */
  onRequest: (line: string) => unknown;
  /** Returns the bytes to send in place of those of a request. */
  change: (bytes: Buffer) => Buffer;
}

export async function startProxy(target: number): Promise<Proxy> {
  const connections = new Set<Socket>();
  const requests: string[] = [];
  let weather: Weather = "fair";
  let most = 0;
  const server = createServer((client) => {
    const upstream = connect(target, "127.0.0.1");
    for (const socket of [client, upstream]) {
      connections.add(socket);
      socket.on("error", () => {}).on("close", () => connections.delete(socket));
    }
    // Each connection ends with the other, whatever ended that.
    forward(client, upstream)
      .catch(() => {})
      .finally(() => upstream.end());
    answer(upstream, client)
      .catch(() => {})
      .finally(() => client.end());
  });

  async function forward(client: Socket, upstream: Socket): Promise<void> {
    let sent = 0;
    for await (const bytes of client as AsyncIterable<Buffer>) {
      const [, line] = /^((?:GET|PUT|POST|HEAD|DELETE) \S+ HTTP\/1\.1)\r\n/.exec(bytes.toString("latin1")) ?? [];
      if (line !== undefined) {
        requests.push(line);
        sent = 0;
        await proxy.onRequest(line);
      }
      await fair(client);
      if (weather === "cut" && sent + bytes.length > most) {
        client.resetAndDestroy();
        return;
      }
      sent += bytes.length;
      upstream.write(proxy.change(bytes));
    }
  }

  async function answer(upstream: Socket, client: Socket): Promise<void> {
    let sent = 0;
    for await (const bytes of upstream as AsyncIterable<Buffer>) {
      sent += bytes.length;
      if (weather === "hole" && sent > most) weather = "stall";
      await fair(client);
      for (let at = 0; at < bytes.length; at += 1) {
        if (weather !== "trickle") {
          client.write(bytes.subarray(at));
          break;
        }
        client.write(bytes.subarray(at, at + 1));
        await delay(1);
      }
    }
  }

  /** Resolves when the weather lets anything through, or the connection is gone. */
  async function fair(client: Socket): Promise<void> {
    while (weather === "stall" && !client.destroyed) await delay(5);
  }

  async function listen(port: number): Promise<number> {
    server.listen(port, "127.0.0.1");
    await once(server, "listening");
    return (server.address() as AddressInfo).port;
  }

  const proxy: Proxy = {
    port: await listen(0),
    requests,
    async set(next, bytes = 0) {
      if (next === "refuse" && weather !== "refuse") {
        server.close();
        for (const socket of connections) socket.destroy();
      }
      const closed = weather === "refuse" && next !== "refuse";
      weather = next;
      most = bytes;
      if (closed) await listen(proxy.port);
    },
    onRequest() {},
    change: (bytes) => bytes,
    async [Symbol.asyncDispose]() {
      weather = "refuse";
      server.close();
      for (const socket of connections) socket.destroy();
    },
  };
  return proxy;
}
