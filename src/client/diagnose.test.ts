import { spawn } from "node:child_process";
import { once } from "node:events";
import { createSecureServer } from "node:http2";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { createServer as createTlsServer } from "node:tls";
import { beforeAll, describe, expect, it } from "vitest";
import { diagnose, unusableCredentials } from "./diagnose.ts";
import { type TestAuthority, testAuthority } from "./testing/authority.ts";

const DAY_MS = 86_400_000;
const LAST_YEAR = new Date(Date.now() - 365 * DAY_MS);
const NEXT_WEEK = new Date(Date.now() + 7 * DAY_MS);

let authority: TestAuthority;
let stranger: TestAuthority;
type Pair = Awaited<ReturnType<TestAuthority["issue"]>>;
let own: Pair;
let worker: Pair;
beforeAll(async () => {
  [authority, stranger] = await Promise.all([testAuthority(LAST_YEAR), testAuthority()]);
  [own, worker] = await Promise.all([authority.issue("writer"), authority.issue("worker")]);
});

/** Listens on a free port of 127.0.0.1 for as long as it is in use. */
async function listening(server: Server): Promise<{ port: number } & AsyncDisposable> {
  const sockets = new Set<{ destroy(): void }>();
  server.on("connection", (socket) => sockets.add(socket));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    port: portOf(server),
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, "close");
    },
  };
}

function portOf(server: Server): number {
  const address: AddressInfo | string | null = server.address();
  return typeof address === "object" && address ? address.port : 0;
}

/** As a worker does: HTTP/2 for certificates that its CA signed. */
function workerServer(pair = worker, ca = authority.ca): Server {
  return createSecureServer({ ...pair, ca, requestCert: true, rejectUnauthorized: true, minVersion: "TLSv1.3" }).on(
    "error",
    () => {},
  );
}

async function reasonAt(port: number, given: { pair?: Pair; ca?: string; host?: string } = {}) {
  const { pair = own, ca = authority.ca, host = "127.0.0.1" } = given;
  return diagnose({ server: `${host}:${port}`, ca, ...pair }, 2_000);
}

describe("without a TLS server", () => {
  it("nobody listens", async () => {
    const gone = await listening(createServer());
    await gone[Symbol.asyncDispose]();
    expect(await reasonAt(gone.port)).toMatchObject({
      reason: "refused",
      message: `nobody listens at 127.0.0.1:${gone.port}`,
    });
  });

  it("a name cannot be resolved", async () => {
    expect(await reasonAt(1, { host: "no-such-host.invalid" })).toMatchObject({ reason: "name-not-found" });
  });

  it("a host does not answer", async () => {
    const code = `require("net").createServer().listen({ port: 0, host: "127.0.0.1", backlog: 1 }, function () { console.log(this.address().port) })`;
    const host = spawn(process.execPath, ["-e", code]);
    const [line]: unknown[] = await once(host.stdout.setEncoding("utf8"), "data");
    const port = Number(line);
    host.kill("SIGSTOP");
    // The kernel accepts one connection more than the backlog for a process that does not, and then none.
    const waiting = [connect(port, "127.0.0.1"), connect(port, "127.0.0.1")];
    await Promise.all(waiting.map((socket) => once(socket, "connect")));
    const { reason } = await diagnose({ server: `127.0.0.1:${port}`, ca: authority.ca, ...own }, 300);
    for (const socket of waiting) socket.destroy();
    host.kill("SIGKILL");
    expect(reason).toBe("timeout");
  });

  it("something listens that says nothing, or something else", async () => {
    await using silent = await listening(createServer());
    const { reason, message } = await diagnose({ server: `127.0.0.1:${silent.port}`, ca: authority.ca, ...own }, 300);
    expect({ reason, message }).toEqual({
      reason: "not-tls",
      message: expect.stringContaining("does not answer in TLS"),
    });
    await using plain = await listening(
      createServer((socket) => socket.on("error", () => {}).end("HTTP/1.1 400 Bad Request\r\n\r\n")),
    );
    expect(await reasonAt(plain.port)).toMatchObject({ reason: "not-tls" });
  });
});

describe("with a server that a client must refuse", () => {
  it.each(["TLSv1.1", "TLSv1.2"] as const)("it speaks %s only", async (maxVersion) => {
    const old = createTlsServer({ ...worker, minVersion: "TLSv1", maxVersion, ciphers: "DEFAULT@SECLEVEL=0" });
    await using server = await listening(old.on("tlsClientError", () => {}));
    expect(await reasonAt(server.port)).toMatchObject({
      reason: "old-tls",
      message: expect.stringContaining("TLS 1.3 only"),
    });
  });

  it.each([[], ["http/1.1"]])("it speaks no HTTP/2, but ALPN %j", async (...protocols) => {
    const web = createTlsServer({ ...worker, minVersion: "TLSv1.3", ALPNProtocols: protocols.filter(Boolean) });
    await using server = await listening(web.on("tlsClientError", () => {}));
    expect(await reasonAt(server.port)).toMatchObject({
      reason: "not-http2",
      message: expect.stringContaining("speaks TLS but not HTTP/2 (ALPN h2)"),
    });
  });

  it("it ends the connection before TLS has begun, or refuses the handshake", async () => {
    await using resetting = await listening(
      createServer((socket) => socket.once("data", () => socket.resetAndDestroy())),
    );
    expect(await reasonAt(resetting.port)).toMatchObject({ reason: "closed" });
    await using closing = await listening(createServer((socket) => socket.on("error", () => {}).end()));
    expect(await reasonAt(closing.port)).toMatchObject({
      reason: "closed",
      message: expect.not.stringContaining("no TLS"),
    });
    const picky = createTlsServer({ ...worker, minVersion: "TLSv1.3", ecdhCurve: "brainpoolP256r1tls13" });
    await using refusing = await listening(picky.on("tlsClientError", () => {}));
    expect(await reasonAt(refusing.port)).toMatchObject({
      reason: "handshake-refused",
      message: expect.stringContaining("(TLS alert handshake failure)"),
    });
  });

  it("its certificate is of another CA, of the same name", async () => {
    await using server = await listening(workerServer(await stranger.issue("worker")));
    expect(await reasonAt(server.port)).toMatchObject({
      reason: "server-untrusted",
      message: expect.stringContaining("CN=worker"),
    });
  });

  it("its certificate is over, or not yet begun", async () => {
    await using over = await listening(workerServer(await authority.issue("worker", { now: LAST_YEAR, days: 1 })));
    expect(await reasonAt(over.port)).toMatchObject({ reason: "server-expired" });
    await using early = await listening(workerServer(await authority.issue("worker", { now: NEXT_WEEK })));
    expect(await reasonAt(early.port)).toMatchObject({ reason: "server-not-yet-valid" });
  });

  it("its certificate is made out to another name", async () => {
    await using server = await listening(
      workerServer(await authority.issue("worker", { hosts: ["other.example", "192.0.2.1"] })),
    );
    for (const host of ["127.0.0.1", "localhost"]) {
      expect(await reasonAt(server.port, { host })).toMatchObject({
        reason: "server-name",
        message: expect.stringContaining("other.example"),
      });
    }
  });
});

describe("with a certificate that a worker must refuse", () => {
  it.each<[string, () => Promise<Pair>, string]>([
    ["is over", () => authority.issue("writer", { now: LAST_YEAR, days: 1 }), "own-expired"],
    ["has not yet begun", () => authority.issue("writer", { now: NEXT_WEEK }), "own-not-yet-valid"],
    ["is of another CA", () => stranger.issue("writer"), "own-untrusted"],
    ["is a worker's", () => authority.issue("worker"), "own-purpose"],
  ])("it %s", async (_, issue, reason) => {
    await using server = await listening(workerServer());
    expect(await reasonAt(server.port, { pair: await issue() })).toMatchObject({
      reason,
      remedy: expect.stringMatching(/./),
    });
  });

  it("it is refused for what cannot be seen from here, with a word, a reset or neither", async () => {
    await using telling = await listening(workerServer(worker, stranger.ca));
    expect(await reasonAt(telling.port)).toMatchObject({ reason: "own-refused" });
    const lax = { requestCert: true, rejectUnauthorized: false, ALPNProtocols: ["h2"] };
    const harsh = createTlsServer({ ...worker, ca: stranger.ca, ...lax });
    harsh.on("connection", (raw: Socket) => harsh.once("secureConnection", () => raw.resetAndDestroy()));
    await using resetting = await listening(harsh);
    expect(await reasonAt(resetting.port)).toMatchObject({ reason: "own-refused" });
    const silent = createTlsServer({ ...worker, ca: stranger.ca, ...lax });
    await using closing = await listening(silent.on("secureConnection", (socket) => socket.destroy()));
    expect(await reasonAt(closing.port)).toMatchObject({ reason: "own-refused" });
  });

  it("the key is another's, or the files are no PEM", async () => {
    const { key } = await stranger.issue("writer");
    const { ca } = authority;
    expect(unusableCredentials({ ca, cert: own.cert, key })).toMatchObject({ reason: "own-key" });
    expect(unusableCredentials({ ca: "x", ...own })).toMatchObject({
      message: expect.stringContaining("ca: holds nothing in PEM, no certificate"),
    });
    expect(unusableCredentials({ ca, cert: "x", key })).toMatchObject({
      message: expect.stringContaining("cert: holds nothing in PEM, no certificate"),
    });
    expect(unusableCredentials({ ca, cert: own.cert, key: "x" })).toMatchObject({ reason: "own-unreadable" });
    expect(await reasonAt(1, { pair: { cert: own.cert, key } })).toMatchObject({ reason: "own-key" });
  });
});

describe("with nothing wrong", () => {
  it("it says that the worker answers, also for the second CA of a bundle", async () => {
    await using server = await listening(workerServer());
    expect(await reasonAt(server.port)).toMatchObject({ reason: "answers" });
    expect(await reasonAt(server.port, { ca: `${stranger.ca}${authority.ca}`, host: "localhost" })).toMatchObject({
      reason: "answers",
    });
  });
});
