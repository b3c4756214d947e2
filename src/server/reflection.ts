import { type handleBidiStreamingCall, type ServerDuplexStream, status } from "@grpc/grpc-js";
import {
  ServerReflectionRequest,
  ServerReflectionResponse,
  ServerReflectionService,
} from "../../proto/generated/grpc/reflection/v1/reflection.ts";
import { ServerReflectionService as AlphaService } from "../../proto/generated/grpc/reflection/v1alpha/reflection.ts";
import type { ApiFiles } from "./descriptors.ts";
import { type CallContext, type Handlers, readable } from "./guard.ts";
import { METHODS } from "./roles.ts";
import { onWire } from "./service.ts";
import { asItIs, writer } from "./stream.ts";

type Answer = NonNullable<ServerReflectionResponse["messageResponse"]>;

/** The protocol in both versions, which are the same on the wire. Answers are serialised already. */
export const REFLECTION = [ServerReflectionService, AlphaService].map((service) => ({
  serverReflectionInfo: {
    ...service.serverReflectionInfo,
    requestDeserialize: (bytes: Buffer) => ServerReflectionRequest.decode(bytes),
    responseSerialize: asItIs,
  },
}));

const SERVICES = [...new Set([...METHODS].map((path) => path.split("/")[1] ?? ""))].toSorted();

/** Implements gRPC's server reflection (github.com/grpc/grpc, doc/server-reflection.md): tools learn the API by it. */
export function reflection({ duplex }: Pick<Handlers, "duplex">): {
  serverReflectionInfo: handleBidiStreamingCall<ServerReflectionRequest, Buffer>;
} {
  let files: Promise<ApiFiles> | undefined;
  // A tenth of a megabyte of code that no client of jobs' own asks for.
  const load = (): Promise<ApiFiles> => (files ??= import("./descriptors.ts").then((module) => module.readApiFiles()));
  return { serverReflectionInfo: duplex(async (call, context) => reflect(call, context, await load())) };
}

/** Answers one request after another, each in a turn, until the client asks no more. */
async function reflect(
  call: ServerDuplexStream<ServerReflectionRequest, Buffer>,
  { signal, turn }: CallContext,
  files: ApiFiles,
): Promise<void> {
  const write = writer(call, signal);
  const ended = Promise.withResolvers<never>();
  ended.promise.catch(() => {}); // it may come when nobody waits
  signal.addEventListener("abort", () => ended.reject(signal.reason), { once: true });
  // A stream that was left would be destroyed, and with it the status that tells why.
  const requests = call.iterator({ destroyOnReturn: false });
  for (;;) {
    signal.throwIfAborted();
    const next: IteratorResult<ServerReflectionRequest> = await Promise.race([requests.next(), ended.promise]);
    if (next.done) return;
    const answered = await turn(() => ({ taken: write(answerTo(readable(next.value), files)) }));
    await answered.taken;
  }
}

function answerTo(request: ServerReflectionRequest, files: ApiFiles): Buffer {
  const messageResponse = resultOf(request.messageRequest, files);
  const response = { validHost: request.host, originalRequest: request, messageResponse };
  return onWire(ServerReflectionResponse.encode(response).finish());
}

function resultOf(asked: ServerReflectionRequest["messageRequest"], files: ApiFiles): Answer {
  switch (asked?.$case) {
    case "listServices":
      return { $case: "listServicesResponse", value: { service: SERVICES.map((name) => ({ name })) } };
    case "fileByFilename":
      return filesAnswer(files.named(asked.value), `file ${JSON.stringify(asked.value)}`);
    case "fileContainingSymbol":
      return filesAnswer(files.declaring(asked.value), `symbol ${JSON.stringify(asked.value)}`);
    case "allExtensionNumbersOfType":
      if (!files.hasMessage(asked.value)) return notFound(`message ${JSON.stringify(asked.value)}`);
      return {
        $case: "allExtensionNumbersResponse",
        value: { baseTypeName: asked.value, extensionNumber: [] },
      };
    case "fileContainingExtension":
      return notFound("extension: the API has none");
    default:
      return errorOf(status.INVALID_ARGUMENT, "the request asks for nothing");
  }
}

function filesAnswer(found: Uint8Array[] | undefined, what: string): Answer {
  if (!found) return notFound(what);
  return { $case: "fileDescriptorResponse", value: { fileDescriptorProto: found.map(onWire) } };
}

function notFound(what: string): Answer {
  return errorOf(status.NOT_FOUND, `no ${what}`);
}

function errorOf(errorCode: status, errorMessage: string): Answer {
  return { $case: "errorResponse", value: { errorCode, errorMessage } };
}
