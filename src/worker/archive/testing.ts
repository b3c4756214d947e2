import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { connect, createServer, type AddressInfo, type Socket } from "node:net";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

/* Real S3 servers, and a real proxy that takes them away. */

export const BUCKET = "logs";
/** s3rver knows no others. */
const KEY_ID = "S3RVER";
const SECRET = "S3RVER";

/** An S3 server with an empty bucket. */
export interface S3Server extends AsyncDisposable {
  readonly port: number;
  /** Where it keeps an object's bytes. */
  object(key: string): string;
}

/**
 * Two, since they differ in what a client has to live with: s3rver is on npm, makes no checksums, and has no list of
 * uploads; versitygw makes them and refuses what is not as its checksum says, and is built where there is Go.
 */
export const servers: readonly {
  readonly name: string;
  readonly checksums: boolean;
  readonly start: (() => Promise<S3Server>) | undefined;
}[] = [
  { name: "s3rver", checksums: false, start: startS3rver },
  { name: "versitygw", checksums: true, start: hasGo() ? startVersitygw : undefined },
];

/** What the SDK finds credentials in. */
export function credentials(secret = SECRET): void {
  process.env["AWS_ACCESS_KEY_ID"] = KEY_ID;
  process.env["AWS_SECRET_ACCESS_KEY"] = secret;
}

async function startS3rver(): Promise<S3Server> {
  const directory = mkdtempSync(join(tmpdir(), "jobs-s3rver-"));
  const S3rver = createRequire(import.meta.url)("@20minutes/s3rver") as new (options: object) => {
    run(): Promise<AddressInfo>;
    close(): Promise<void>;
  };
  const server = new S3rver({
    address: "127.0.0.1",
    port: 0,
    silent: true,
    directory,
    configureBuckets: [{ name: BUCKET }],
  });
  const { port } = await server.run();
  return {
    port,
    object: (key) => join(directory, BUCKET, `${key}._S3rver_object`),
    async [Symbol.asyncDispose]() {
      await server.close();
      rmSync(directory, { recursive: true });
    },
  };
}

const VERSITYGW = "v1.8.0";

function hasGo(): boolean {
  try {
    execFileSync("go", ["version"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}

/** Builds it once; that takes a minute or two. */
function versitygw(): string {
  const cache = join(process.env["XDG_CACHE_HOME"] || join(homedir(), ".cache"), "jobs-tests");
  const program = join(cache, `versitygw-${VERSITYGW}`);
  if (existsSync(program)) return program;
  mkdirSync(cache, { recursive: true });
  const fresh = mkdtempSync(join(cache, "new-"));
  execFileSync("go", ["install", `github.com/versity/versitygw/cmd/versitygw@${VERSITYGW}`], {
    env: { ...process.env, GOBIN: fresh },
    stdio: ["ignore", "ignore", "inherit"],
  });
  renameSync(join(fresh, "versitygw"), program);
  rmSync(fresh, { recursive: true });
  return program;
}

async function startVersitygw(): Promise<S3Server> {
  const program = versitygw();
  const directory = mkdtempSync(join(tmpdir(), "jobs-versitygw-"));
  mkdirSync(join(directory, BUCKET));
  // It takes no port 0, and tells none.
  const finder = createServer().listen(0, "127.0.0.1");
  await once(finder, "listening");
  const { port } = finder.address() as AddressInfo;
  finder.close();
  const child = spawn(program, ["--port", `127.0.0.1:${port}`, "--quiet", "posix", directory], {
    env: { ROOT_ACCESS_KEY_ID: KEY_ID, ROOT_SECRET_ACCESS_KEY: SECRET },
    stdio: "ignore",
  });
  for (const deadline = Date.now() + 20_000; !(await listens(port)); await delay(20))
    if (Date.now() > deadline || child.exitCode !== null) throw new Error("versitygw does not listen");
  return {
    port,
    object: (key) => join(directory, BUCKET, key),
    async [Symbol.asyncDispose]() {
      child.kill();
      await once(child, "exit");
      rmSync(directory, { recursive: true });
    },
  };
}

async function listens(port: number): Promise<boolean> {
  const socket = connect(port, "127.0.0.1");
  try {
    await once(socket, "connect");
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

/** What becomes of bytes on their way: `trickle` lets answers through byte by byte, `hole` the first of each answer. */
export type Weather = "fair" | "refuse" | "cut" | "stall" | "trickle" | "hole";

/** A TCP proxy on a port of its own. */
export interface Proxy extends AsyncDisposable {
  readonly port: number;
  /** The first line of each request that came, as in `PUT /logs/w/j/output?x-id=PutObject HTTP/1.1`. */
  readonly requests: string[];
  /** What it is from now on, on all connections; `cut` lets `bytes` of each request through, `hole` of answers. */
  set(weather: Weather, bytes?: number): Promise<void>;
  /** Called with each request's first line before it goes on. */
  onRequest: (line: string) => unknown;
  /** What is sent in place of bytes of requests. */
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
    // One ends with the other, in whatever way that ends.
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
