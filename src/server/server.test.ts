import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { credentials, status } from "@grpc/grpc-js";
import { beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { RetryInfo, Status } from "../../proto/generated/google/rpc/details.ts";
import {
  HealthCheckResponse_ServingStatus as ServingStatus,
  HealthClient,
} from "../../proto/generated/grpc/health/v1/health.ts";
import { StreamRequest, WorkerServiceClient } from "../../proto/generated/jobs/v1/worker.ts";
import { authority, type Authority, type Pair } from "./testing/authority.ts";
import { until } from "../testing/processes.ts";
import { answer, clientOf, errorOf, healthClientOf, JOB, running, silence } from "./testing/server.ts";

let trusted: Authority;
let writer: Pair;
beforeAll(async () => {
  trusted = await authority();
  writer = await trusted.client("writer");
});

describe("a server that is closed", () => {
  test("ends streams and waits with UNAVAILABLE and when to try again, lets a stop finish, and takes no more", async () => {
    let stopped: (() => void) | undefined;
    await using server = await running(
      trusted,
      {
        stream: (_, { signal }) => silence(signal),
        stop: () => new Promise((resolve) => (stopped = () => resolve({ job: JOB, killed: 3 }))),
      },
      { shutdownMs: 10_000 },
    );
    using client = clientOf(server.port, trusted.ca, writer);
    const stream = once(client.stream(StreamRequest.fromPartial({ jobId: JOB.id })), "end");
    const wait = answer((done) => client.wait({ jobId: JOB.id }, done));
    const stop = answer((done) => client.stop({ jobId: JOB.id, grace: undefined }, done));
    const errors = Promise.all([errorOf(stream), errorOf(wait)]);
    await until(() => stopped !== undefined && server.audit.length === 2, "the calls are being handled");
    const began = performance.now();
    const closed = server.close();
    for (const { code, metadata } of await errors) {
      expect(code).toBe(status.UNAVAILABLE);
      const [details] = metadata.get("grpc-status-details-bin");
      const retry = Status.decode(Buffer.from(details ?? "")).details.find(({ typeUrl }) =>
        typeUrl.endsWith("RetryInfo"),
      );
      expect(RetryInfo.decode(retry?.value ?? Buffer.alloc(0)).retryDelay?.seconds).toBe(1n);
    }
    stopped?.();
    expect(await stop).toMatchObject({ killed: 3 });
    await closed;
    expect(performance.now() - began).toBeLessThan(5000);
    expect((await errorOf(answer((done) => client.query({ jobId: JOB.id }, done)))).code).toBe(status.UNAVAILABLE);
  });

  test("waits no longer than it may for a call that does not end", async () => {
    let signal: AbortSignal | undefined;
    await using server = await running(
      trusted,
      {
        stop: (_id, _how, given) => {
          signal = given;
          return new Promise(() => undefined);
        },
      },
      { shutdownMs: 300 },
    );
    using client = clientOf(server.port, trusted.ca, writer);
    const stop = errorOf(answer((done) => client.stop({ jobId: JOB.id, grace: undefined }, done)));
    await until(() => signal !== undefined, "the stop is being handled");
    const began = performance.now();
    await server.close();
    expect(performance.now() - began).toBeGreaterThanOrEqual(290);
    expect(performance.now() - began).toBeLessThan(2000);
    expect((await stop).code).toBe(status.UNAVAILABLE);
    expect(signal?.aborted).toBe(true);
    expect(server.audit.at(-1)).toMatchObject({ stage: "end", code: "CANCELLED" });
  });

  test("waits no longer than it may for a client that reads nothing", async () => {
    await using server = await running(
      trusted,
      {
        async *stream() {
          for (;;) yield { kind: "chunk", source: "stdout", timeMs: 0, offset: 0, bytes: Buffer.alloc(256 * 1024) };
        },
      },
      { shutdownMs: 300 },
    );
    using client = clientOf(server.port, trusted.ca, writer);
    const stream = client.stream(StreamRequest.fromPartial({ jobId: JOB.id }));
    const ended = new Promise((resolve) => stream.once("error", resolve));
    await once(stream, "readable");
    const began = performance.now();
    await server.close();
    expect(performance.now() - began).toBeLessThan(2000);
    stream.resume();
    expect(await ended).toMatchObject({ code: status.UNAVAILABLE });
  });

  test("can be closed twice, without having had a client", async () => {
    const server = await running(trusted);
    await Promise.all([server.close(), server.close()]);
  });
});

describe("health", () => {
  test("is known for the server and for the service, and for nothing else", async () => {
    await using server = await running(trusted);
    using client = healthClientOf(server.port, trusted.ca, writer);
    for (const service of ["", "jobs.v1.WorkerService"]) {
      expect(await answer((done) => client.check({ service }, done))).toEqual({ status: ServingStatus.SERVING });
    }
    expect((await errorOf(answer((done) => client.check({ service: "other" }, done)))).code).toBe(status.NOT_FOUND);
    const [unknown] = await once(
      client.watch({ service: "other" }).on("error", () => undefined),
      "data",
    );
    expect(unknown).toEqual({ status: ServingStatus.SERVICE_UNKNOWN });
  });

  test("is NOT_SERVING from the moment of a shutdown, and watchers are told", async () => {
    await using server = await running(trusted);
    using client = healthClientOf(server.port, trusted.ca, writer);
    const seen: ServingStatus[] = [];
    const watch = client.watch({ service: "" });
    watch.on("data", (response: { status: ServingStatus }) => seen.push(response.status));
    const ended = errorOf(once(watch, "end"));
    await until(() => seen.length === 1, "the first status came");
    await server.close();
    expect((await ended).code).toBe(status.UNAVAILABLE);
    expect(seen).toEqual([ServingStatus.SERVING, ServingStatus.NOT_SERVING]);
  });
});

describe("the health socket", () => {
  test("answers its owner without a certificate or an audit record, and knows no other method", async () => {
    const directory = await mkdtemp(join(tmpdir(), "health-"));
    const healthSocket = join(directory, "socket");
    await leaveSocket(healthSocket);
    await using server = await running(trusted, {}, { healthSocket });
    expect((await stat(healthSocket)).mode & 0o777).toBe(0o600);
    const client = new HealthClient(`unix:${healthSocket}`, credentials.createInsecure());
    const worker = new WorkerServiceClient(`unix:${healthSocket}`, credentials.createInsecure());
    expect(await answer((done) => client.check({ service: "" }, done))).toEqual({ status: ServingStatus.SERVING });
    const refused = await errorOf(answer((done) => worker.query({ jobId: JOB.id }, done)));
    expect(refused.code).toBe(status.UNIMPLEMENTED);
    client.close();
    worker.close();
    expect(server.audit).toEqual([]);
    await server.close();
    expect(await readdir(directory)).toEqual([]);
    await rm(directory, { recursive: true });
  });

  test("is an error when it cannot be had", async () => {
    await expect(running(trusted, {}, { healthSocket: "/nowhere/socket" })).rejects.toMatchObject({
      code: "cannot-listen",
      message: expect.stringContaining("/nowhere/socket"),
    });
  });
});

/** Leaves a socket that nobody listens on, as a killed daemon does. */
async function leaveSocket(path: string): Promise<void> {
  const script = "require('net').createServer().listen(process.argv[1], () => process.kill(process.pid, 'SIGKILL'))";
  await once(spawn(process.execPath, ["-e", script, path]), "exit");
}

describe("a server does not come up", () => {
  test("where the health socket's path holds anything else, which is left as it is", async () => {
    const directory = await mkdtemp(join(tmpdir(), "health-"));
    onTestFinished(() => rm(directory, { recursive: true }));
    const file = join(directory, "file");
    await writeFile(file, "precious");
    const [link, dangling, socket] = ["link", "dangling", "socket"].map((name) => join(directory, name));
    await symlink(file, link ?? "");
    await symlink(join(directory, "nothing"), dangling ?? "");
    await mkdir(join(directory, "directory"));
    const other = createServer().listen(socket);
    await once(other, "listening");
    const before = await readdir(directory);
    for (const name of ["file", "link", "dangling", "directory"])
      await expect(running(trusted, {}, { healthSocket: join(directory, name) }), name).rejects.toMatchObject({
        code: "cannot-listen",
        message: expect.stringMatching(/is no socket, and was left as it is/),
      });
    await expect(running(trusted, {}, { healthSocket: socket })).rejects.toMatchObject({
      message: expect.stringContaining("another process listens on it"),
    });
    expect(await readdir(directory)).toEqual(before);
    expect(await readFile(file, "utf8")).toBe("precious");
    other.close();
  });

  test("on a port that is in use, and says so", async () => {
    const other = createServer().listen(0, "127.0.0.1");
    await once(other, "listening");
    const address = other.address();
    const port = typeof address === "object" ? (address?.port ?? 0) : 0;
    await expect(running(trusted, {}, { port })).rejects.toMatchObject({
      name: "ServeError",
      code: "port-in-use",
      message: expect.stringContaining(`127.0.0.1:${port} is in use`),
    });
    other.close();
  });

  test("on an address that is not this host's", async () => {
    await expect(running(trusted, {}, { host: "192.0.2.1" })).rejects.toMatchObject({ code: "cannot-listen" });
  });

  test("when its audit log cannot be opened", async () => {
    await expect(running(trusted, {}, { audit: "/proc/none/audit.log" })).rejects.toMatchObject({ code: "ENOENT" });
  });
});
