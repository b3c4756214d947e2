import { PassThrough } from "node:stream";
import { describe, expect, it } from "vitest";
import { Job } from "../../proto/generated/jobs/v1/worker.ts";
import { ClientError } from "../../src/client/errors.ts";
import { ClosedPipe, exitCodeOfError, exitCodeOfJob } from "./exit.ts";
import { describeEnd, formatCommand, formatTable } from "./format.ts";
import { formatBytes, formatDuration } from "./units.ts";
import { UsageError } from "../line/parse.ts";
import { rendered } from "./text.ts";

type Ended = NonNullable<Parameters<typeof Job.fromPartial>[0]["ended"]>;

function job(ended: Ended): Job {
  return Job.fromPartial({ id: "x", state: 4, command: "sh", args: ["-c", "it's"], ended: { exitCode: -1, ...ended } });
}

function exec(errno: string): ClientError {
  return new ClientError("INVALID_ARGUMENT", "x", { facts: { stage: "exec", errno } });
}

describe("an ended job", () => {
  it.each<[Ended, number, string, string]>([
    [{ how: { $case: "exited", value: { code: 0 } }, exitCode: 0 }, 0, "exited(0)", "exited with code 0"],
    [{ how: { $case: "exited", value: { code: 255 } }, exitCode: 255 }, 255, "exited(255)", "exited with code 255"],
    [
      { how: { $case: "signalled", value: { signal: 11, coreDumped: true } }, signal: 11, killed: 2 },
      139,
      "killed(SIGSEGV)",
      "killed by SIGSEGV (core dumped); 2 processes left over had to be killed",
    ],
    [
      { how: { $case: "signalled", value: { signal: 40 } }, signal: 40 },
      168,
      "killed(signal 40)",
      "killed by signal 40",
    ],
    [{ how: { $case: "stopped", value: { by: "ann" } }, signal: 15 }, 143, "stopped", "stopped by ann"],
    [{ how: { $case: "stopped", value: { by: "ann" } }, exitCode: 3 }, 3, "stopped", "stopped by ann"],
    [
      { how: { $case: "stopped", value: { by: "ann", escalated: true } }, signal: 9 },
      137,
      "stopped(killed)",
      "stopped by ann and had to be killed",
    ],
    [
      { how: { $case: "timedOut", value: { limit: { seconds: 90n, nanos: 0 } } }, signal: 15 },
      124,
      "timed-out",
      "timed out after 1m30s",
    ],
    [
      { how: { $case: "outOfMemory", value: { kills: 1n } } },
      137,
      "out-of-memory",
      "out of memory: the kernel killed 1 process",
    ],
    [
      { how: { $case: "outOfMemory", value: { kills: 3n, wholeJob: true } }, signal: 9 },
      137,
      "out-of-memory",
      "out of memory: the kernel killed the whole job, 3 processes",
    ],
    [
      { how: { $case: "lost", value: { reason: "the machine was restarted" } } },
      125,
      "lost",
      "lost: the machine was restarted",
    ],
  ])("%o gives exit code, column and sentence", (ended, code, word, words) => {
    expect(exitCodeOfJob(job(ended))).toBe(code);
    expect(describeEnd(job(ended))).toEqual({ word, words });
  });

  it("that has not ended has no code of its own", () => {
    const running = Job.fromPartial({ state: 2 });
    expect(exitCodeOfJob(running)).toBe(125);
    expect(describeEnd(running)).toEqual({ word: "running", words: "running" });
  });
});

describe("an error", () => {
  it.each([
    [new UsageError("x"), "run", 125],
    [new ClosedPipe(), "stream", 141],
    [exec("ENOENT"), "run", 127],
    [exec("ENOENT"), "start", 127],
    [exec("EACCES"), "run", 126],
    [exec("ENOEXEC"), "run", 126],
    [new ClientError("INVALID_ARGUMENT", "x", { facts: { stage: "cwd", errno: "ENOENT" } }), "run", 125],
    [new ClientError("UNAVAILABLE", "x"), "run", 125],
    [new ClientError("NOT_FOUND", "x"), "wait", 125],
    [new ClientError("NOT_FOUND", "x"), "query", 1],
    [new Error("x"), "list", 1],
  ])("%s of %s gives %i", (error, command, code) => {
    expect(exitCodeOfError(error, command)).toBe(code);
  });
});

describe("for people", () => {
  it("a command line is as a shell would take it, and writes nothing on the terminal by itself", () => {
    expect(formatCommand({ command: "sh", args: ["-c", "it's", "", "a\u001b[2Jb"], argvBytes: [] })).toBe(
      "sh -c 'it'\\''s' '' $'a\\x1b[2Jb'",
    );
  });

  it("bytes and durations have a unit that suits them", () => {
    expect([0n, 1023n, 1024n, 1_572_864n, 3n * 1024n ** 3n].map(formatBytes)).toEqual([
      "0 B",
      "1023 B",
      "1 KiB",
      "1.5 MiB",
      "3 GiB",
    ]);
    const times = [0.25, 1.5, 59.96, 125, 11_045, 176_400].map((s) =>
      formatDuration({ seconds: BigInt(Math.trunc(s)), nanos: (s % 1) * 1e9 }),
    );
    expect(times).toEqual(["250ms", "1.5s", "60s", "2m05s", "3h04m", "2d01h"]);
    expect(formatDuration(undefined)).toBe("-");
  });

  it("a table has a job a line, whatever is in its name", () => {
    const odd = Job.fromPartial({ id: "x", state: 2, command: "a\nb", user: "u", owner: "o\u0007" });
    const [, row, rest] = formatTable([odd]).map((line) => rendered(line, new PassThrough()));
    expect(row).toMatch(/^x +running +- +- +- +o\\x07 +u +\$'a\\nb'$/);
    expect(rest).toBeUndefined();
  });
});
