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

/** What the connections of a proxy share. */
interface Sky {
  weather: Weather;
  /** The bytes that `cut` and `hole` let through. */
  most: number;
}

/** Resolves when the weather lets anything through, or the connection is gone. */
async function fair(sky: Sky, client: Socket): Promise<void> {
  while (sky.weather === "stall" && !client.destroyed) await delay(5);
}

/** Hands a client's requests on. */
async function forward(client: Socket, upstream: Socket, sky: Sky, proxy: Proxy): Promise<void> {
  let sent = 0;
  for await (const bytes of client as AsyncIterable<Buffer>) {
    const [, line] = /^((?:GET|PUT|POST|HEAD|DELETE) \S+ HTTP\/1\.1)\r\n/.exec(bytes.toString("latin1")) ?? [];
    if (line !== undefined) {
      proxy.requests.push(line);
      sent = 0;
      await proxy.onRequest(line);
    }
    await fair(sky, client);
    if (sky.weather === "cut" && sent + bytes.length > sky.most) {
      client.resetAndDestroy();
      return;
    }
    sent += bytes.length;
    upstream.write(proxy.change(bytes));
  }
}

/** Hands the server's answers back. */
async function answer(upstream: Socket, client: Socket, sky: Sky): Promise<void> {
  let sent = 0;
  for await (const bytes of upstream as AsyncIterable<Buffer>) {
    sent += bytes.length;
    if (sky.weather === "hole" && sent > sky.most) sky.weather = "stall";
    await fair(sky, client);
    for (let at = 0; at < bytes.length; at += 1) {
      if (sky.weather !== "trickle") {
        client.write(bytes.subarray(at));
        break;
      }
      client.write(bytes.subarray(at, at + 1));
      await delay(1);
    }
  }
}

export async function startProxy(target: number): Promise<Proxy> {
  const connections = new Set<Socket>();
  const sky: Sky = { weather: "fair", most: 0 };
  const server = createServer((client) => {
    const upstream = connect(target, "127.0.0.1");
    for (const socket of [client, upstream]) {
      connections.add(socket);
      socket.on("error", () => {}).on("close", () => connections.delete(socket));
    }
    // Each connection ends with the other, whatever ended that.
    forward(client, upstream, sky, proxy)
      .catch(() => {})
      .finally(() => upstream.end());
    answer(upstream, client, sky)
      .catch(() => {})
      .finally(() => client.end());
  });
  const close = (): void => {
    server.close();
    for (const socket of connections) socket.destroy();
  };

  async function listen(port: number): Promise<number> {
    server.listen(port, "127.0.0.1");
    await once(server, "listening");
    return (server.address() as AddressInfo).port;
  }

  const proxy: Proxy = {
    port: await listen(0),
    requests: [],
    async set(weather, most = 0) {
      const before = sky.weather;
      if (weather === "refuse" && before !== "refuse") close();
      Object.assign(sky, { weather, most });
      if (before === "refuse" && weather !== "refuse") await listen(proxy.port);
    },
    onRequest() {},
    change: (bytes) => bytes,
    async [Symbol.asyncDispose]() {
      sky.weather = "refuse";
      close();
    },
  };
  return proxy;
}
