import { chmod } from "node:fs/promises";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { BlockList, isIP, isIPv6, type Socket } from "node:net";
import { lookup } from "node:dns/promises";
import { reasonOf } from "../os/errno.ts";
import { removeStale } from "../os/socket.ts";

/** Where metrics are to be had: a TCP address, or the path of a UNIX socket. */
export type MetricsAddress =
  | { readonly kind: "tcp"; readonly host: string; readonly port: number }
  | { readonly kind: "unix"; readonly path: string };

/** How many connections there are at once; with one more the oldest that has no request is closed. A scraper takes one. */
const MAX_CONNECTIONS = 16;
/** How long a request may take to come, and a connection may be silent: an answer that nobody reads ends then. */
const REQUEST_MS = 5_000;
const SILENT_MS = 30_000;
const MAX_HEADER_BYTES = 8 * 1024;
/** The group may scrape, so that a directory with the set-group-id bit decides who that is. */
const SOCKET_MODE = 0o660;
const CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8";

/** Metrics cannot be had at the address that was given; the message says why, and what would be right. */
export class MetricsError extends Error {
  override readonly name = "MetricsError";
  readonly code: "cannot-listen" | "not-loopback";

  constructor(code: MetricsError["code"], message: string, cause?: unknown) {
    super(message, { cause });
    this.code = code;
  }
}

export interface MetricsListener {
  /** The address as it is bound: `127.0.0.1:9464`, or `unix:PATH`. */
  readonly address: string;
  /** Ends all connections, and removes the socket. */
  close(): Promise<void>;
}

interface ListenOptions {
  readonly address: MetricsAddress;
  /** Other hosts may be able to reach the address. Nobody is asked who they are. */
  readonly remote: boolean;
  readonly scrape: () => Promise<string>;
  readonly failed: (error: unknown) => void;
}

/**
 * Answers `GET /metrics` in HTTP/1.1. Scrapes at the same time share one answer. Throws MetricsError when the address cannot
 * be had, or is not this host's own and `remote` is false.
 */
export async function listenForScrapes({ address, remote, scrape, failed }: ListenOptions): Promise<MetricsListener> {
  const told = address.kind === "unix" ? `unix:${address.path}` : `${inBrackets(address.host)}:${address.port}`;
  const server = createServer({ maxHeaderSize: MAX_HEADER_BYTES, connectionsCheckingInterval: 1000 });
  server.headersTimeout = REQUEST_MS;
  server.requestTimeout = REQUEST_MS;
  server.timeout = SILENT_MS;
  server.keepAliveTimeout = SILENT_MS;
  const shared = shareOne(scrape);
  /** Connections with a request that is not answered. */
  const busy = new WeakSet<Socket>();
  const open = new Set<Socket>();
  server.on("connection", (socket: Socket) => {
    open.add(socket);
    socket.once("close", () => open.delete(socket));
    if (open.size <= MAX_CONNECTIONS) return;
    for (const each of open) {
      if (busy.has(each)) continue;
      open.delete(each);
      each.destroy();
      return;
    }
  });
  server.on("request", (request, response) => {
    const { socket } = request;
    // Requests that came before the answer would be answered all at once, in memory.
    if (socket.destroyed || busy.has(socket)) {
      socket.destroy();
      return;
    }
    busy.add(socket);
    response.once("close", () => busy.delete(socket));
    answer(request, response, shared).catch((error: unknown) => {
      failed(error);
      tell(response, 500, "the metrics could not be had; the log of jobsd says why\n");
    });
  });
  try {
    await bind(server, address, remote);
  } catch (error) {
    if (error instanceof MetricsError) throw error;
    throw new MetricsError("cannot-listen", `--metrics: cannot listen on ${told}: ${reasonOf(error)}`, error);
  }
  server.on("error", failed);
  const bound = server.address();
  const port = bound !== null && typeof bound === "object" ? bound.port : 0;
  return {
    address: address.kind === "unix" ? told : `${inBrackets(address.host)}:${port}`,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

async function bind(server: Server, address: MetricsAddress, remote: boolean): Promise<void> {
  if (address.kind === "unix") {
    await removeStale(address.path, "--metrics");
    await listen(server, { path: address.path });
    await chmod(address.path, SOCKET_MODE);
    return;
  }
  const { address: host } = await lookup(address.host);
  if (!remote && !isLoopback(host)) {
    const message = `--metrics ${inBrackets(address.host)}:${address.port} is not an address of this host alone, and whoever reaches it may read the metrics: give 127.0.0.1:${address.port} or unix:PATH, or add --metrics-remote`;
    throw new MetricsError("not-loopback", message);
  }
  await listen(server, { host, port: address.port });
}

function listen(server: Server, where: { path: string } | { host: string; port: number }): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(where, () => {
      server.off("error", reject);
      resolve();
    });
  });
}

const loopback = new BlockList();
loopback.addSubnet("127.0.0.0", 8, "ipv4");
loopback.addAddress("::1", "ipv6");

function isLoopback(host: string): boolean {
  return loopback.check(host, isIPv6(host) ? "ipv6" : "ipv4");
}

async function answer(
  request: IncomingMessage,
  response: ServerResponse,
  scrape: () => Promise<string>,
): Promise<void> {
  const { method, url = "" } = request;
  if (!/^\/metrics(?:\?|$)/.test(url)) tell(response, 404, "metrics are at /metrics\n");
  else if (method !== "GET" && method !== "HEAD")
    tell(response, 405, "metrics are to be got\n", { allow: "GET, HEAD" });
  else tell(response, 200, await scrape(), { "content-type": CONTENT_TYPE });
}

/** Answers with a text, unless the client has gone, or has an answer. A body that came with the request is not read. */
function tell(response: ServerResponse, status: number, text: string, headers: Record<string, string> = {}): void {
  if (response.headersSent) {
    response.destroy();
    return;
  }
  const body = Buffer.from(text);
  const closing = response.req.headers["content-length"] ?? response.req.headers["transfer-encoding"];
  response.writeHead(status, {
    "content-type": "text/plain; charset=utf-8",
    "content-length": body.length,
    ...headers,
    ...(closing !== undefined && { connection: "close" }),
  });
  response.end(body);
}

/** Has calls that come while one is under way share its result. */
function shareOne<Result>(work: () => Promise<Result>): () => Promise<Result> {
  let under: Promise<Result> | undefined;
  return () => (under ??= work().finally(() => (under = undefined)));
}

function inBrackets(host: string): string {
  return isIP(host) === 6 ? `[${host}]` : host;
}
