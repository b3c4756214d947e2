import { expect, test } from "vitest";
import { StartRequest } from "../../proto/generated/jobs/v1/worker.ts";
import { JobError } from "../worker/model/errors.ts";
import { strictly } from "./requests.ts";
import { SERVICE } from "./stream.ts";

const { start } = strictly(SERVICE);
const read = (bytes: Uint8Array): unknown => start.requestDeserialize(Buffer.from(bytes));

test("a request is read as it was written, with a byte order mark and every plane of Unicode", () => {
  const request = StartRequest.fromPartial({ command: "\ufeffsh\u{1f600}é", env: new Map([["A\u2028", "b"]]) });
  expect(read(StartRequest.encode(request).finish())).toEqual(request);
});

test("a start with as many arguments or variables as it may have is read, and one of millions of empty ones is not", () => {
  const args = StartRequest.fromPartial({ command: "a", args: Array.from({ length: 233_000 }, () => "") });
  expect(read(StartRequest.encode(args).finish())).toEqual(args);
  const env = new Map(Array.from({ length: 110_000 }, (_, i) => [String(i), ""]));
  expect(read(StartRequest.encode(StartRequest.fromPartial({ command: "a", env })).finish())).toMatchObject({ env });
  const error = read(Buffer.alloc(4 << 20, Buffer.of(0x12, 0)));
  expect(error).toMatchObject({ code: "invalid", message: expect.stringContaining("more fields than 2 MiB") });
});

test.each([
  ["a string with a byte that is no UTF-8", [0x0a, 1, 0xff], "a string in it is not UTF-8"],
  ["a surrogate in UTF-8", [0x0a, 3, 0xed, 0xa0, 0x80], "a string in it is not UTF-8"],
  ["an overlong character", [0x12, 2, 0xc0, 0xaf], "a string in it is not UTF-8"],
  ["a map's key that is no UTF-8", [0x22, 3, 0x0a, 1, 0xff], "a string in it is not UTF-8"],
  ["a long string that is no UTF-8", [0x0a, 100, ...Array.from({ length: 99 }, () => 0x61), 0xff], "is not UTF-8"],
  ["a field that is longer than the request", [0x0a, 9, 0x61], "the request cannot be read: "],
])("%s reaches its handler as an error of the request's", (_, bytes, message) => {
  const error = read(Uint8Array.from(bytes));
  expect(error).toBeInstanceOf(JobError);
  expect(error).toMatchObject({ code: "invalid", message: expect.stringContaining(message) });
});
