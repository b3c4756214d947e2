import { createFileRegistry, type DescMessage, fromBinary, type JsonValue, toJson } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { DESCRIPTORS } from "../../proto/generated/descriptors.ts";

/** The messages that commands give as JSON. */
export type MessageName =
  | "ExamineResponse"
  | "ListResponse"
  | "PruneResponse"
  | "QueryResponse"
  | "RemoveResponse"
  | "StartResponse"
  | "StatsResponse"
  | "StopResponse"
  | "StreamResponse"
  | "UpdateResponse"
  | "WaitResponse";

const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, Buffer.from(DESCRIPTORS, "base64")));

/**
 * A message of the API in protobuf's JSON mapping (protobuf.dev/programming-guides/json), from its bytes on the wire.
 * Fields that have their default value are there, as the mapping allows: who reads them in a shell finds them.
 */
export function messageToJson(name: MessageName, bytes: Uint8Array): JsonValue {
  const schema = messageSchema(name);
  return toJson(schema, fromBinary(schema, bytes), { alwaysEmitImplicit: true, registry });
}

/** How a message of the API is made up. Throws where there is none of that name. */
export function messageSchema(name: string): DescMessage {
  const schema = registry.getMessage(`jobs.v1.${name}`);
  if (!schema) throw new Error(`the API has no message ${name}`);
  return schema;
}
