import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Host, startHost } from "../testing/host.ts";

let host: Host;
beforeAll(async () => {
  const flags = ["--log-limit", "4M", "--log-compress", "zstd", "--log-prune-count", "2", "--log-prune-age", "30d"];
  host = await startHost(flags);
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
});

/** Runs a job to its end; resolves to its id. */
async function ended(flags: readonly string[], script: string): Promise<string> {
  const { stdout, stderr } = await host.jobs(["start", ...flags, "--", "sh", "-c", script]);
  if (stdout === "") throw new Error(stderr);
  await host.jobs(["wait", stdout.trim()]);
  return stdout.trim();
}

/** What `jobsctl query` says, once it has a line. */
async function queried(id: string, line: RegExp): Promise<string> {
  for (;;) {
    const { stdout } = await host.jobs(["query", id]);
    if (line.test(stdout)) return stdout;
  }
}

describe("a job's log", () => {
  it("has the policy that its start asked for, and is told of where it is", async () => {
    const flags = ["--log-limit", "1M", "--log-keep", "oldest", "--log-compress", "off", "--log-keep-for", "1h30m"];
    const id = await ended(flags, "seq 300000");
    const told = await queried(id, /^log: /m);
    expect(told).toMatch(/^log policy: +1 MiB at most, the oldest kept, not compressed, pruned 1h30m after the end$/m);
    expect(told).toMatch(/^log: +kept, 1(\.\d)? MiB on the worker's disk$/m);
    expect(told).toMatch(/^output: +\d+ bytes, \d+ dropped$/m);
    const json = await host.jobs(["query", "--output", "json", id]);
    expect(JSON.parse(json.stdout)).toMatchObject({
      job: {
        logPolicy: {
          limit: "1048576",
          keep: "LOG_KEEP_OLDEST",
          compression: "LOG_COMPRESSION_OFF",
          keepFor: "5400s",
        },
        log: { place: "LOG_PLACE_KEPT" },
      },
    });
  });

  it("is compressed when the job has ended, and streams as before", async () => {
    const id = await ended([], "seq 100000");
    expect(await queried(id, /^log: +compressed/m)).toMatch(/^log: +compressed, \d+(\.\d)? KiB on the worker's disk$/m);
    expect((await host.jobs(["logs", "--tail", "2", id])).stdout).toBe("99999\n100000\n");
    const { stdout } = await host.jobs(["logs", "--offset", "588885", id]);
    expect(stdout).toBe("99999\n100000\n".slice(-10));
  });

  it("that was pruned is told of, with since when and why, and no reader is left without a word", async () => {
    const id = await ended([], "echo gone");
    await ended([], "echo stays");
    await ended([], "echo stays");
    const told = await queried(id, /^log: +pruned/m);
    const [, since = ""] =
      /^log: +pruned (\S+Z) for the number of logs; it took 8 KiB on the worker's disk$/m.exec(told) ?? [];
    expect(Date.parse(since)).toBeGreaterThan(0);
    for (const flags of [[], ["--follow"], ["--offset", "3"]]) {
      const { code, stdout, stderr } = await host.jobs(["stream", ...flags, id]);
      expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
      expect(stderr).toContain(`the output of ${id}, 8192 bytes of this worker's disk, was pruned at ${since}`);
      expect(stderr).toContain("--log-prune-count");
    }
    expect((await host.jobs(["list", "-q"])).stdout).toContain(id);
  });

  it.each([
    [["--log-limit", "5M"], /log\.limit.* 4194304 is the most/],
    [["--log-limit", "0"], /log\.limit: no limit is above .* 4194304 is the most/],
    [["--log-keep-for", "31d"], /log\.keep_for: is above .* 2592000 s is the most/],
    [["--log-archive", "yes"], /log\.archive: this worker has no archive/],
    [["--log-keep", "all"], /--log-keep "all" is not one of newest, oldest/],
    [["--log-compress", "gzip"], /--log-compress "gzip" is not one of off, zstd/],
  ])("cannot be more than the daemon keeps: %j", async (flags, message) => {
    const { code, stderr } = await host.jobs(["start", ...flags, "--", "true"]);
    expect(stderr).toMatch(message);
    expect(code).toBeGreaterThan(0);
  });
});
