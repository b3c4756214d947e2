import { spawnSync } from "node:child_process";
import { createFileRegistry, equals, fromBinary, fromJsonString, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { unless } from "../../src/testing/root.ts";
import { DESCRIPTORS } from "../../proto/generated/descriptors.ts";
import { messageSchema, type MessageName } from "./json.ts";
import { type Host, startHost } from "../testing/host.ts";

/** Python's protobuf reads a message's JSON from stdin, strictly, and writes its bytes. */
const PARSE = `
import base64, sys
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
pool = descriptor_pool.DescriptorPool()
for file in descriptor_pb2.FileDescriptorSet.FromString(base64.b64decode(sys.argv[1])).file: pool.Add(file)
message = message_factory.GetMessageClass(pool.FindMessageTypeByName(sys.argv[2]))()
json_format.Parse(sys.stdin.read(), message)
sys.stdout.buffer.write(message.SerializeToString())
`;
const PYTHON = spawnSync("python3", ["-c", "import google.protobuf.message_factory"]).status === 0;

let host: Host;
let id: string;
/** What each command with --output json gives. */
const documents = new Map<MessageName, string>();
beforeAll(async () => {
  host = await startHost();
  const limits = ["--time-limit", "1m30s500ms", "--log-keep-for", "1h", "--rlimit", "nofile=64:128", "--umask", "077"];
  const command = ["--", "sh", "-c", "echo out; echo err >&2; exit 3"];
  const start = await host.jobs(["start", "-o", "json", ...limits, "--label", "a=\u202e", "--env", "V=1", ...command]);
  id = /"jobId": "([^"]+)"/.exec(start.stdout)?.[1] ?? "";
  await host.jobs(["wait", id]);
  const last = (text: string): string => text.trimEnd().split("\n").at(-1) ?? "";
  documents.set("StartResponse", start.stdout);
  documents.set("WaitResponse", (await host.jobs(["wait", "-o", "json", id])).stdout);
  documents.set("QueryResponse", (await host.jobs(["query", "-ojson", id])).stdout);
  documents.set("ListResponse", (await host.jobs(["list", "--output=json"])).stdout);
  documents.set("StopResponse", (await host.jobs(["stop", "-o", "json", id])).stdout);
  documents.set("StatsResponse", last((await host.jobs(["stats", "--json", id])).stdout));
  documents.set("StreamResponse", last((await host.jobs(["stream", "-o", "json", id])).stdout));
  documents.set("ExamineResponse", (await host.jobs(["doctor", "-o", "json"])).stdout);
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
});

const NAMES = [
  "StartResponse",
  "WaitResponse",
  "QueryResponse",
  "ListResponse",
  "StopResponse",
  "StatsResponse",
  "StreamResponse",
  "ExamineResponse",
] as const;

describe("JSON", () => {
  it.each(NAMES)("of %s is what protobuf's own parser takes, with nothing that it does not know", (name) => {
    const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, Buffer.from(DESCRIPTORS, "base64")));
    const message = fromJsonString(messageSchema(name), documents.get(name) ?? "", { registry });
    expect(toBinary(messageSchema(name), message).length).toBeGreaterThan(20);
  });

  it.each(NAMES)(
    "of %s means the same to Python's protobuf",
    unless(PYTHON ? undefined : "python3 has no google.protobuf: pip install protobuf"),
    (name) => {
      const schema = messageSchema(name);
      const read = spawnSync("python3", ["-c", PARSE, DESCRIPTORS, schema.typeName], { input: documents.get(name) });
      expect(read.stderr.toString()).toBe("");
      const message = fromJsonString(schema, documents.get(name) ?? "");
      expect(equals(schema, fromBinary(schema, read.stdout), message)).toBe(true);
    },
  );

  it("has durations in seconds, times by RFC 3339, 64-bit numbers as text, enums by name, bytes in base64", () => {
    const { job } = JSON.parse(documents.get("QueryResponse") ?? "");
    expect(job).toMatchObject({
      timeLimit: "90.500s",
      createdAt: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3}){0,3}Z$/),
      state: "STATE_ENDED",
      output: { size: "8", first: "0", dropped: "0" },
      logPolicy: { keepFor: "3600s", keep: "LOG_KEEP_NEWEST" },
      usage: { elapsed: expect.stringMatching(/^\d+(\.\d+)?s$/) },
      ended: { exited: { code: 3 }, exitCode: 3, signal: 0 },
      labels: { a: "\u202e" },
    });
    // The text itself turns nothing around.
    expect(documents.get("QueryResponse")).toContain(String.raw`"a": "\u202e"`);
  });
});
