import { createFileRegistry, fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import { Metadata, status } from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  type HealthCheckResponse,
  HealthCheckResponse_ServingStatus as ServingStatus,
  type HealthListResponse,
} from "../../proto/generated/grpc/health/v1/health.ts";
import {
  ServerReflectionClient,
  type ServerReflectionRequest,
  type ServerReflectionResponse,
} from "../../proto/generated/grpc/reflection/v1/reflection.ts";
import { ServerReflectionClient as AlphaClient } from "../../proto/generated/grpc/reflection/v1alpha/reflection.ts";
import { WorkerServiceService } from "../../proto/generated/jobs/v1/worker.ts";
import { type Authority, authority, type Pair } from "./testing/authority.ts";
import { until } from "../testing/processes.ts";
import { answer, CLIENT_OPTIONS, channelOf, healthClientOf, type Running, running } from "./testing/server.ts";

type Asked = ServerReflectionRequest["messageRequest"];

let certificates: Authority;
let server: Running;
let reader: Pair;
beforeAll(async () => {
  certificates = await authority();
  [server, reader] = [await running(certificates), await certificates.client("reader")];
});
afterAll(() => server[Symbol.asyncDispose]());

/** Opens a stream of reflection as the holder of a certificate. */
function open(pair = reader, Client: typeof ServerReflectionClient | typeof AlphaClient = ServerReflectionClient) {
  const client = new Client(`127.0.0.1:${server.port}`, channelOf(certificates.ca, pair), CLIENT_OPTIONS);
  const call = client.serverReflectionInfo(new Metadata(), {});
  const answers: ServerReflectionResponse[] = [];
  let code: number | undefined;
  call.on("data", (each: ServerReflectionResponse) => answers.push(each));
  call.on("error", () => {});
  call.on("status", (end: { readonly code: number }) => (code = end.code));
  return {
    answers,
    write: (messageRequest: Asked) => call.write({ host: "h", messageRequest }),
    call,
    async ended(): Promise<number> {
      await until(() => code !== undefined, "the stream has ended");
      client.close();
      return code ?? -1;
    },
  };
}

/** Asks one after another, and returns the answers. */
async function ask(
  asked: readonly Asked[],
  Client?: typeof AlphaClient,
): Promise<ServerReflectionResponse["messageResponse"][]> {
  const stream = open(reader, Client);
  for (const each of asked) stream.write(each);
  stream.call.end();
  expect(await stream.ended()).toBe(status.OK);
  return stream.answers.map(({ messageResponse }) => messageResponse);
}

const symbol = (value: string): Asked => ({ $case: "fileContainingSymbol", value });

/** Returns the names of the files of an answer; what went wrong when it is none. */
function filesIn(response: ServerReflectionResponse["messageResponse"]): string[] {
  if (response?.$case === "errorResponse")
    return [`${status[response.value.errorCode]}: ${response.value.errorMessage}`];
  if (response?.$case !== "fileDescriptorResponse") return [];
  return response.value.fileDescriptorProto.map((bytes) => fromBinary(FileDescriptorProtoSchema, bytes).name);
}

describe("reflection", () => {
  it.each([
    ["v1", undefined],
    ["v1alpha", AlphaClient],
  ])("in %s names the services, and describes each method whole", async (_, Client) => {
    const [services, worker] = await ask(
      [{ $case: "listServices", value: "" }, symbol("jobs.v1.WorkerService")],
      Client,
    );
    expect(services?.$case === "listServicesResponse" && services.value.service.map(({ name }) => name)).toEqual([
      "grpc.health.v1.Health",
      "grpc.reflection.v1.ServerReflection",
      "grpc.reflection.v1alpha.ServerReflection",
      "jobs.v1.WorkerService",
    ]);
    const files = worker?.$case === "fileDescriptorResponse" ? worker.value.fileDescriptorProto : [];
    // The registry throws where an import is missing.
    const byName = new Map(
      files.map((bytes) => fromBinary(FileDescriptorProtoSchema, bytes)).map((file) => [file.name, file]),
    );
    const main = byName.get("jobs/v1/worker.proto");
    if (!main) throw new Error("the service's file is missing");
    const registry = createFileRegistry(main, (name) => byName.get(name));
    const methods = registry
      .getService("jobs.v1.WorkerService")
      ?.methods.map(({ name }) => `/jobs.v1.WorkerService/${name}`);
    expect(methods?.toSorted()).toEqual(
      Object.values(WorkerServiceService)
        .map(({ path }) => path)
        .toSorted(),
    );
    expect(registry.getMessage("jobs.v1.StartRequest")?.fields.map(({ name }) => name)).toContain("command");
  });

  it.each([
    ["a method", "jobs.v1.WorkerService.Start", "jobs/v1/worker.proto"],
    ["a message", "jobs.v1.StartRequest", "jobs/v1/worker.proto"],
    ["a field", "jobs.v1.StartRequest.command", "jobs/v1/worker.proto"],
    ["a oneof", "grpc.reflection.v1.ServerReflectionRequest.message_request", "grpc/reflection/v1/reflection.proto"],
    ["an enum", "jobs.v1.Network", "jobs/v1/worker.proto"],
    ["an enum's value", "jobs.v1.NETWORK_NONE", "jobs/v1/worker.proto"],
    ["a value of an enum in a message", "grpc.health.v1.HealthCheckResponse.SERVING", "grpc/health/v1/health.proto"],
    ["a type of protobuf's own", "google.protobuf.Timestamp", "google/protobuf/timestamp.proto"],
  ])("finds %s by its full name", async (_, name, file) => {
    const [found] = await ask([symbol(name)]);
    expect(filesIn(found)[0]).toBe(file);
  });

  it("finds a file by its name", async () => {
    const [found] = await ask([{ $case: "fileByFilename", value: "jobs/v1/resources.proto" }]);
    expect(filesIn(found)).toContain("jobs/v1/resources.proto");
  });

  it("answers what it does not have with an error, and goes on with the next request", async () => {
    const asked: Asked[] = [
      symbol("jobs.v1.Nothing"),
      symbol(""),
      symbol("__proto__"),
      symbol("jobs.v1.StartRequest.nothing"),
      { $case: "fileByFilename", value: "../../etc/passwd" },
      { $case: "fileContainingExtension", value: { containingType: "jobs.v1.Job", extensionNumber: 1 } },
      { $case: "allExtensionNumbersOfType", value: "jobs.v1.Nothing" },
      undefined,
      { $case: "allExtensionNumbersOfType", value: "jobs.v1.Job" },
    ];
    const answers = await ask(asked);
    const errors = answers.slice(0, -1).map((each) => (each?.$case === "errorResponse" ? each.value.errorCode : 0));
    expect(errors).toEqual([...Array.from({ length: 7 }, () => status.NOT_FOUND), status.INVALID_ARGUMENT]);
    expect(answers.at(-1)?.$case).toBe("allExtensionNumbersResponse");
  });

  it("is refused to a certificate without a role, and recorded like any other call: once when it begins, once when it ends", async () => {
    const path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    const records = (): unknown[] =>
      server.audit
        .filter(({ method }) => method === path)
        .map(({ decision, stage, reason, code }) => [decision, stage, reason ?? code]);
    const before = records().length;
    const stream = open(await certificates.issue({ name: "nobody" }));
    stream.write({ $case: "listServices", value: "" });
    expect(await stream.ended()).toBe(status.PERMISSION_DENIED);
    expect(stream.answers).toEqual([]);
    await ask([symbol("jobs.v1.Job"), symbol("jobs.v1.Job"), symbol("jobs.v1.Job")]);
    await until(() => records().length >= before + 3, "the end is recorded");
    expect(records().slice(before)).toEqual([
      ["denied", undefined, "ROLE_MISSING"],
      ["allowed", "begin", undefined],
      ["allowed", "end", "OK"],
    ]);
  });

  it("ends a stream whose request is malformed, or whose requests are too long together", async () => {
    const long = open();
    for (let i = 0; i < 20; i++) long.write(symbol("x".repeat(8000)));
    expect(await long.ended()).toBe(status.RESOURCE_EXHAUSTED);
    expect(long.answers.length).toBeLessThan(9);
    const odd = open();
    odd.write(symbol("\ud800")); // is sent as U+FFFD, which is a name like any other
    odd.call.end();
    expect(await odd.ended()).toBe(status.OK);
  });

  it("holds no more than one answer for a client that reads none", async () => {
    const stream = open();
    stream.call.pause();
    for (let i = 0; i < 1000; i++) stream.write(symbol("jobs.v1.Job"));
    stream.call.end();
    // A call of another client's is answered meanwhile.
    using other = healthClientOf(server.port, certificates.ca, reader);
    expect((await answer<HealthCheckResponse>((done) => other.check({ service: "" }, done))).status).toBe(
      ServingStatus.SERVING,
    );
    stream.call.resume();
    expect(await stream.ended()).toBe(status.OK);
    expect(stream.answers).toHaveLength(1000);
  });

  it("that is idle keeps no server from closing", async () => {
    const own = await running(certificates, {}, { shutdownMs: 30_000 });
    const client = new ServerReflectionClient(
      `127.0.0.1:${own.port}`,
      channelOf(certificates.ca, reader),
      CLIENT_OPTIONS,
    );
    const call = client.serverReflectionInfo(new Metadata(), {});
    call.on("error", () => {});
    const end = new Promise<number>((resolve) => void call.on("status", ({ code }: { code: number }) => resolve(code)));
    await new Promise((resolve) => {
      call.once("data", resolve);
      call.write({ host: "", messageRequest: { $case: "listServices", value: "" } });
    });
    const began = performance.now();
    await own.close();
    expect(await end).toBe(status.UNAVAILABLE);
    expect(performance.now() - began).toBeLessThan(20_000);
    client.close();
  });
});

it("health is listed for all services that can be asked for", async () => {
  using client = healthClientOf(server.port, certificates.ca, reader);
  const { statuses } = await answer<HealthListResponse>((done) => client.list({}, done));
  expect([...statuses]).toEqual(["", "jobs.v1.WorkerService"].map((name) => [name, { status: ServingStatus.SERVING }]));
});
