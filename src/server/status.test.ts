import { status } from "@grpc/grpc-js";
import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { BadRequest, ErrorInfo, RetryInfo, Status } from "../../proto/generated/google/rpc/details.ts";
import { invalid, JobError, type JobErrorCode } from "../worker/model/errors.ts";
import { failureOf, statusOf } from "./status.ts";

/** Returns a worker's error as a client receives it. */
function received(error: JobError) {
  const failure = failureOf(error);
  if (!failure) throw new Error("no failure");
  const { code, details: message, metadata } = statusOf(failure);
  const { "grpc-status-details-bin": bin } = metadata.toHttp2Headers();
  const all = Status.decode(Buffer.from(String(bin), "base64"));
  const detail = (name: string) =>
    all.details.find(({ typeUrl }) => typeUrl === `type.googleapis.com/google.rpc.${name}`)?.value;
  return { code, message, headerBytes: encodeURI(message).length + String(bin).length, all, detail };
}

describe("an error of the worker is told as", () => {
  test.each<[JobErrorCode, status, string]>([
    ["invalid", status.INVALID_ARGUMENT, "INVALID"],
    ["not-found", status.NOT_FOUND, "NOT_FOUND"],
    ["pruned", status.NOT_FOUND, "PRUNED"],
    ["forbidden", status.PERMISSION_DENIED, "FORBIDDEN"],
    ["unsupported", status.FAILED_PRECONDITION, "UNSUPPORTED"],
    ["exhausted", status.RESOURCE_EXHAUSTED, "EXHAUSTED"],
    ["unavailable", status.UNAVAILABLE, "UNAVAILABLE"],
  ])("%s", (code, expected, reason) => {
    const { all, message, detail, ...rest } = received(new JobError(code, "why", { facts: { stage: "exec" } }));
    expect(rest.code).toBe(expected);
    expect(all).toMatchObject({ code: expected, message });
    const info = ErrorInfo.decode(detail("ErrorInfo") ?? Buffer.alloc(0));
    expect(info).toEqual({ reason, domain: "jobs", metadata: new Map([["stage", "exec"]]) });
    const retriable = code === "exhausted" || code === "unavailable";
    const retry = detail("RetryInfo");
    expect(retry && RetryInfo.decode(retry)).toEqual(retriable ? { retryDelay: { seconds: 1n, nanos: 0 } } : undefined);
  });

  test("unavailable, with the name of the part that is away", () => {
    const { detail, all } = received(new JobError("unavailable", "why", { reason: "archive-unavailable" }));
    expect(all.code).toBe(status.UNAVAILABLE);
    expect(ErrorInfo.decode(detail("ErrorInfo") ?? Buffer.alloc(0)).reason).toBe("ARCHIVE_UNAVAILABLE");
  });

  test("the field that is wrong", () => {
    const { detail, message } = received(invalid("resources.memory.limit", "must be positive"));
    expect(message).toBe("resources.memory.limit: must be positive");
    expect(BadRequest.decode(detail("BadRequest") ?? Buffer.alloc(0))).toEqual({
      fieldViolations: [{ field: "resources.memory.limit", description: message }],
    });
  });
});

test("the field is told for INVALID_ARGUMENT alone, as the proto promises", () => {
  for (const code of ["not-found", "unsupported", "precondition", "forbidden", "exhausted"] as const)
    expect(received(new JobError(code, "why", { field: "job_id" })).detail("BadRequest")).toBeUndefined();
});

test("an error that is not the request's tells the client nothing", () => {
  for (const error of [new JobError("internal", "secret"), new Error("secret"), "secret", undefined]) {
    expect(failureOf(error)).toBeUndefined();
  }
});

test("an error of any size and of any characters fits in 8 KiB of headers, and is cut between characters", () => {
  // Texts of a few units repeated are long, and quick to make and to shrink.
  const unit = fc.oneof(
    fc.string({ unit: "binary", maxLength: 3 }),
    fc.constantFrom("\ud83d", "\ude00", "\ud83d\ude00", "é"),
  );
  const text = fc.tuple(unit, unit, fc.nat(1500)).map(([first, more, count]) => first + more.repeat(count));
  fc.assert(
    fc.property(text, fc.dictionary(text, text, { maxKeys: 10 }), (message, facts) => {
      const got = received(new JobError("invalid", message, { field: message, facts }));
      expect(got.headerBytes).toBeLessThan(8 * 1024);
      expect(got.message.isWellFormed()).toBe(true);
      if (Buffer.byteLength(message.toWellFormed()) <= 900) expect(got.message).toBe(message.toWellFormed());
    }),
    { numRuns: 500 },
  );
});
