import { once } from "node:events";
import { readFileSync } from "node:fs";
import { mkdir, mkdtemp, rename, rm, rmdir } from "node:fs/promises";
import { connect as connectTcp, createServer, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect, type PeerCertificate } from "node:tls";
import { status } from "@grpc/grpc-js";
import { beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { StreamRequest } from "../../proto/generated/jobs/v1/worker.ts";
import { authority, type Authority, type Pair } from "./testing/authority.ts";
import { until } from "../testing/processes.ts";
import { answer, clientOf, errorOf, factsOf, JOB, type Running, running, silence } from "./testing/server.ts";

let before: Authority;
let after: Authority;
let oldWriter: Pair;
let newWriter: Pair;
beforeAll(async () => {
  [before, after] = await Promise.all([authority("before"), authority("after")]);
  [oldWriter, newWriter] = await Promise.all([before.client("writer"), after.client("writer")]);
});

const both = (): string => before.ca.cert + after.ca.cert;
const stream: Parameters<typeof running>[1] = { stream: (_, { signal }) => silence(signal) };

/** Opens a stream with no output, and returns how it ends. */
async function follow(server: Running, { ca }: Authority, pair: Pair) {
  const client = clientOf(server.port, ca, pair);
  onTestFinished(() => client.close());
  const records = server.audit.length;
  const call = client.stream(StreamRequest.fromPartial({ jobId: JOB.id })).on("error", () => undefined);
  const ended = { code: undefined as number | undefined };
  call.on("status", ({ code }) => (ended.code = code));
  call.resume();
  await until(() => server.audit.length > records, "the stream is being handled");
  return ended;
}

function query(server: Running, ca: Pair, pair: Pair) {
  const client = clientOf(server.port, ca, pair);
  return answer((done) => client.query({ jobId: JOB.id }, done)).finally(() => client.close());
}

/** Shakes hands and returns the certificate that the server showed. */
async function shown(server: Running, pair: Pair): Promise<PeerCertificate> {
  const socket = connect({ port: server.port, ...pair, rejectUnauthorized: false, ALPNProtocols: ["h2"] });
  await once(socket, "secureConnect");
  const certificate = socket.getPeerCertificate();
  socket.destroy();
  return certificate;
}

describe("a server whose certificates are renewed", () => {
  test("shows the new ones from then on, lets in clients of both CAs, and ends no stream", async () => {
    await using server = await running(before, stream);
    const open = await follow(server, before, oldWriter);
    expect((await shown(server, oldWriter)).issuer.CN).toBe("before");
    expect((await errorOf(query(server, before.ca, newWriter))).code).toBe(status.UNAVAILABLE);
    server.renew({ tls: { ca: both(), ...after.server } })();
    expect((await shown(server, oldWriter)).issuer.CN).toBe("after");
    for (const pair of [oldWriter, newWriter]) expect(await query(server, after.ca, pair)).toMatchObject({ pid: 4711 });
    expect(open.code).toBeUndefined();
  });

  test("ends the streams of clients whose CA it trusts no more, says so in the audit log, and leaves others", async () => {
    await using server = await running({ ...before, ca: { ...before.ca, cert: both() } }, stream);
    const [goes, stays] = [
      await follow(server, before, oldWriter),
      await follow({ ...server, port: server.port }, before, newWriter),
    ];
    server.renew({ tls: { ca: after.ca.cert, ...before.server } })();
    await until(() => goes.code !== undefined, "the stream has ended");
    expect(goes.code).toBe(status.UNAVAILABLE);
    expect(server.audit).toContainEqual(
      expect.objectContaining({
        event: "connection",
        decision: "denied",
        reason: "CERTIFICATE_NO_ISSUER",
        presented: expect.objectContaining({ name: "some writer" }),
      }),
    );
    expect((await errorOf(query(server, before.ca, oldWriter))).code).toBe(status.UNAVAILABLE);
    expect(await query(server, before.ca, newWriter)).toMatchObject({ pid: 4711 });
    expect(stays.code).toBeUndefined();
  });

  test("refuses a client whose CA went while it shook hands", async () => {
    await using server = await running({ ...before, ca: { ...before.ca, cert: both() } }, stream);
    const renewed = Promise.withResolvers<void>();
    const hello = Promise.withResolvers<void>();
    const between = createServer((client) => {
      const upstream = connectTcp(server.port, "127.0.0.1");
      client.on("data", (chunk) => upstream.write(chunk)).on("error", () => upstream.destroy());
      upstream.on("error", () => client.destroy()).on("close", () => client.destroy());
      upstream.on("data", (chunk) => {
        hello.resolve();
        void renewed.promise.then(() => client.write(chunk));
      });
    });
    await once(between.listen(0, "127.0.0.1"), "listening");
    onTestFinished(() => void between.close());
    const refused = errorOf(query({ ...server, port: (between.address() as AddressInfo).port }, before.ca, oldWriter));
    await hello.promise;
    server.renew({ tls: { ca: after.ca.cert, ...before.server } })();
    renewed.resolve();
    expect((await refused).code).toBe(status.UNAVAILABLE);
    expect(server.audit).toContainEqual(expect.objectContaining({ reason: "CERTIFICATE_NO_ISSUER" }));
  });

  test("has other limits from then on, and ends nothing that is beyond them", async () => {
    const dir = await mkdtemp(join(tmpdir(), "jobs-renew-"));
    onTestFinished(() => rm(dir, { recursive: true }));
    const audit = join(dir, "audit.jsonl");
    await using server = await running(before, stream, { audit, maxConnections: 8, maxCalls: 8 });
    const ended: unknown[] = [];
    const clients = Array.from({ length: 3 }, () => clientOf(server.port, before.ca, oldWriter));
    onTestFinished(() => clients.forEach((client) => client.close()));
    const follow = (client: (typeof clients)[number] | undefined) => {
      const call = client?.stream(StreamRequest.fromPartial({ jobId: JOB.id }));
      call?.on("error", (error) => ended.push(error)).resume();
    };
    const begun = () => readFileSync(audit, "utf8").split('"stage":"begin"').length - 1;
    for (const client of clients) follow(client);
    await until(() => begun() === 3, "three streams are being handled");
    const tls = { ca: before.ca.cert, ...before.server };
    const limits = { shutdownMs: 100, maxConnections: 4, maxCalls: 4, auditLimits: { limitBytes: 0 } };
    server.renew({ tls, limits })();
    const refused = await errorOf(query(server, before.ca, oldWriter));
    expect(factsOf(refused)).toMatchObject({ reason: "TOO_MANY_CONNECTIONS", maximum: "2" });
    const [first] = clients;
    const full = await errorOf(answer((done) => first?.query({ jobId: JOB.id }, done)));
    expect(factsOf(full)).toMatchObject({ reason: "TOO_MANY_CALLS", maximum: "2" });
    expect(ended).toEqual([]);
    server.renew({ tls, limits: { shutdownMs: 100 } })();
    expect(await query(server, before.ca, oldWriter)).toMatchObject({ pid: JOB.pid });
  });

  test("goes on in the audit log that its path names then, and in the old one where that cannot be opened", async () => {
    const dir = await mkdtemp(join(tmpdir(), "jobs-renew-"));
    onTestFinished(() => rm(dir, { recursive: true }));
    const audit = join(dir, "audit.jsonl");
    await using server = await running(before, stream, { audit });
    const tls = { ca: both(), ...after.server };
    await rename(audit, `${audit}.1`);
    await mkdir(audit);
    expect(() => server.renew({ tls, limits: { shutdownMs: 100 } })).toThrow(/EISDIR/);
    await query(server, before.ca, oldWriter);
    expect(readFileSync(`${audit}.1`, "utf8")).toContain("/Query");
    expect((await shown(server, oldWriter)).issuer.CN).toBe("before");
    await rmdir(audit);
    server.renew({ tls, limits: { shutdownMs: 100 } })();
    await query(server, after.ca, oldWriter);
    expect(readFileSync(audit, "utf8")).toContain("/Query");
  });

  test("goes on with the old ones where the new ones are wrong, or are not taken after all", async () => {
    await using server = await running(before, stream);
    const wrong = { ca: both(), cert: after.server.cert, key: before.server.key };
    expect(() => server.renew({ tls: wrong })).toThrow(expect.objectContaining({ code: "key-mismatch" }));
    server.renew({ tls: { ca: both(), ...after.server } });
    expect((await shown(server, oldWriter)).issuer.CN).toBe("before");
    expect((await errorOf(query(server, before.ca, newWriter))).code).toBe(status.UNAVAILABLE);
  });
});
