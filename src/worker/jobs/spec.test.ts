import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { needsRoot } from "../../testing/root.ts";
import type { JobSpec } from "../model/job.ts";
import { modes, refused, run, testDirectory, testWorker, waits } from "../testing/worker.ts";
import { checkSpec, environmentOf } from "./spec.ts";

/** What is wrong, the field that the error names, and what makes a start wrong. */
const BAD: readonly (readonly [string, string, Partial<JobSpec>])[] = [
  ["an empty command", "command", { command: "" }],
  ["a command that is not there", "command", { command: "no-such-program" }],
  ["a path that is not there", "command", { command: "/no/such/program" }],
  ["a path through a file", "command", { command: "/etc/passwd/program" }],
  ["a path that is not executable", "command", { command: "/etc/passwd" }],
  ["a directory", "command", { command: "/etc" }],
  ["a NUL in the command", "command", { command: "tr\0ue" }],
  ["a NUL in an argument", "args[1]", { args: ["fine", "a\0b"] }],
  ["an argument that is too long", "args[0]", { args: ["x".repeat(128 * 1024)] }],
  ["too many arguments", "args", { args: Array.from({ length: 40 }, () => "x".repeat(64 * 1024)) }],
  ["= in a variable's name", "env", { env: new Map([["A=B", "c"]]) }],
  ["a variable without a name", "env", { env: new Map([["", "c"]]) }],
  ["a NUL in a variable's name", 'env "A\\u0000"', { env: new Map([["A\0", "c"]]) }],
  ["a NUL in a variable's value", 'env "A"', { env: new Map([["A", "c\0"]]) }],
  ["a working directory that is not there", "cwd", { cwd: "/no/such/directory" }],
  ["a working directory that is a file", "cwd", { cwd: "/etc/passwd" }],
  ["a relative working directory", "cwd", { cwd: "tmp" }],
  ["an unknown user", "user", { user: "no-such-user" }],
  ["a negative user", "user", { user: "-1" }],
  ["a user number beyond all", "user", { user: "4294967295" }],
  ["an unknown group", "group", { group: "no-such-group" }],
  ["a time limit of zero", "time_limit", { timeLimitMs: 0 }],
  ["a negative time limit", "time_limit", { timeLimitMs: -1 }],
  ["a time limit that is no number", "time_limit", { timeLimitMs: NaN }],
  ["an endless time limit", "time_limit", { timeLimitMs: Infinity }],
  ["an empty request id", "request_id", { requestId: "" }],
  ["a request id of two lines", "request_id", { requestId: "a\nb" }],
  ["a request id that is too long", "request_id", { requestId: "x".repeat(129) }],
  ["a label's key with a space", "labels", { labels: new Map([["a b", ""]]) }],
  ["a label's value that is too long", "labels", { labels: new Map([["a", "x".repeat(256)]]) }],
  ["too many labels", "labels", { labels: new Map(Array.from({ length: 65 }, (_, i) => [`l${i}`, ""])) }],
  ["a umask beyond 0777", "umask", { umask: 0o1000 }],
  ["a umask that is no number", "umask", { umask: NaN }],
  ["a negative oom_score_adj", "oom_score_adj", { oomScoreAdj: -1 }],
  ["an oom_score_adj beyond 1000", "oom_score_adj", { oomScoreAdj: 1001 }],
  ["an unknown rlimit", "rlimits", { rlimits: [{ name: "files", soft: 1 }] }],
  ["an rlimit that would pass CPU limits", "rlimits", { rlimits: [{ name: "rtprio", soft: 1 }] }],
  ["an rlimit given twice", "rlimits", { rlimits: [{ name: "core" }, { name: "core" }] }],
  ["a soft rlimit above the hard one", "rlimits", { rlimits: [{ name: "core", soft: 2, hard: 1 }] }],
  ["a negative limit", "resources.memory.limit", { resources: { memory: { limit: -2n } } }],
  ["a limit of zero", "resources.memory.limit", { resources: { memory: { limit: 0n } } }],
];

describe.each(modes)("a start %s is refused, names the field, and leaves nothing:", (_mode, options) => {
  test("each of these, and the worker goes on", async () => {
    await using worker = await testWorker(options);
    for (const [what, field, bad] of BAD) {
      const error = await refused(() => worker.start({ ...run("true"), ...bad }));
      expect({ what, code: error.code, field: error.field }).toEqual({ what, code: "invalid", field });
      expect(error.message).toMatch(/\w+/);
      expect({ what, traces: worker.traces() }).toEqual({ what, traces: [] });
    }
    const { job } = await worker.start(waits);
    expect(worker.traces()).toContain(`dir:${job.id}`);
    expect(worker.traces()).toContain(`row:${job.id}`);
  });

  test("a script without a #! line or its interpreter, and the message says which", async () => {
    await using worker = await testWorker(options);
    using files = testDirectory();
    writeFileSync(join(files.path, "script"), "echo hello\n", { mode: 0o755 });
    writeFileSync(join(files.path, "lost"), "#!/no/such/interpreter\n", { mode: 0o755 });
    const script = await refused(() => worker.start(run(join(files.path, "script"))));
    expect(script).toMatchObject({ field: "command", facts: { stage: "exec", errno: "ENOEXEC" } });
    expect(script.message).toContain("#!");
    const lost = await refused(() => worker.start(run(join(files.path, "lost"))));
    expect(lost).toMatchObject({ field: "command", facts: { stage: "exec", errno: "ENOENT" } });
    expect(lost.message).toContain("interpreter");
    expect(worker.traces()).toEqual([]);
  });

  test("a working directory that the job's user may not enter", needsRoot, async () => {
    await using worker = await testWorker(options);
    const { job } = await worker.start({ ...waits, cwd: "/tmp" });
    expect(job.cwd).toBe("/tmp");
    const error = await refused(() => worker.start({ ...waits, cwd: worker.stateDir }));
    expect(error).toMatchObject({ code: "invalid", field: "cwd", facts: { stage: "cwd", errno: "EACCES" } });
    expect(error.message).toContain("nobody");
  });
});

test("a job id that is a path or anything else but an id is not found", async () => {
  await using worker = await testWorker();
  for (const id of ["../../etc/passwd", "..", ".", "", "/etc/passwd", "a/b", "A", "x".repeat(1000), "01\0", "-"])
    for (const call of [
      () => worker.query(id),
      () => worker.stop(id, { by: "tester" }),
      () => worker.wait(id),
      () => worker.stream(id, {}),
    ]) {
      const error = await refused(call);
      expect(error).toMatchObject({ code: "not-found", field: "job_id" });
      expect(error.message.length).toBeLessThan(200);
    }
});

test("a start at the edge of every limit is allowed", () => {
  const labels = new Map([
    ...Array.from({ length: 63 }, (_, i): [string, string] => [`l${i}`, "x".repeat(255)]),
    ["k".repeat(63), ""],
  ]);
  const spec = {
    command: "x",
    args: ["", "x".repeat(128 * 1024 - 1)],
    cwd: "/",
    timeLimitMs: 1,
    requestId: "x".repeat(128),
    labels,
    umask: 0o777,
    oomScoreAdj: 1000,
    rlimits: [
      { name: "core", soft: 0, hard: 0 },
      { name: "nofile", soft: 1, hard: 1 },
    ],
    owner: "o",
  };
  expect(() => checkSpec(spec)).not.toThrow();
});

test("a job's environment is the defaults, overridden by the start's variables", () => {
  const env = new Map([
    ["PATH", "/opt"],
    ["X", ""],
  ]);
  expect(environmentOf({ ...run("x"), env }, { user: "ada", home: "/home/ada" })).toEqual(
    new Map([
      ["PATH", "/opt"],
      ["HOME", "/home/ada"],
      ["USER", "ada"],
      ["LOGNAME", "ada"],
      ["X", ""],
    ]),
  );
});
