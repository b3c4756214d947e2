import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Host, startHost } from "../testing/host.ts";

let host: Host;
beforeAll(async () => {
  host = await startHost();
});
afterAll(() => host[Symbol.asyncDispose]());

describe("jobsctl stats", () => {
  it("is a line a sample until the job has ended, then how it ended", async () => {
    const id = await host.start("sleep", "1000");
    const watching = host.launch(["stats", "--interval", "100ms", id], host.as("reader"));
    const lines = (): string[] => watching.output.stdout.split("\n").slice(0, -1);
    await expect.poll(() => lines().length, { timeout: 20_000 }).toBeGreaterThan(3);
    await host.jobs(["stop", "--grace", "0", id]);
    const { code, stderr } = await watching.ended;
    expect({ code, stderr }).toEqual({ code: 0, stderr: `jobsctl: job ${id}: stopped by writer\n` });
    const [header, ...rows] = lines();
    expect(header).toMatch(
      /^ELAPSED +CPU +THROTTLED +MEMORY +PEAK +SWAP +READ\/S +WRITE\/S +PIDS +WAITS:CPU +MEM +IO$/,
    );
    for (const row of rows) expect(row).toMatch(/^ *[\dms.]+ +(\d+\.\d%|-) /);
    expect(new Set([header, ...rows].map((line) => line?.length)).size).toBe(1);
  });

  it("is one line when no more is wanted, and JSON, a message a line", async () => {
    const id = await host.start("sleep", "1000");
    expect((await host.jobs(["stats", "--once", id])).stdout.split("\n")).toHaveLength(3);
    for (const flags of [["--json"], ["-o", "json"]]) {
      const { code, stdout } = await host.jobs(["stats", "--once", ...flags, id]);
      expect(code).toBe(0);
      expect(JSON.parse(stdout)).toMatchObject({
        time: expect.any(String),
        usage: { elapsed: expect.stringMatching(/^\d+(\.\d+)?s$/) },
      });
    }
  });

  it("of an ended job is its last figures", async () => {
    const id = await host.start("true");
    await host.jobs(["wait", id]);
    const { code, stdout, stderr } = await host.jobs(["stats", id]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: `jobsctl: job ${id}: exited with code 0\n` });
    expect(stdout.split("\n")).toHaveLength(3);
  });

  it("goes on when the daemon was killed and came back", async () => {
    const id = await host.start("sleep", "1000");
    const watching = host.launch(["stats", "--interval", "100ms", id]);
    await watching.shows("%");
    await host.crash();
    await watching.shows("connection lost", "stderr");
    await host.jobs(["stop", "--grace", "0", id]);
    expect(await watching.ended).toMatchObject({ code: 0, stderr: expect.stringContaining("stopped by writer") });
  });

  it.each([
    [["--interval", "99ms", "x"], 125, "--interval 99ms is too short: 100ms is the least"],
    [["nobody"], 1, "there is no job"],
  ])("%j is refused", async (args, code, message) => {
    const ran = await host.jobs(["stats", ...args]);
    expect(ran).toMatchObject({ code, stdout: "", stderr: expect.stringContaining(message) });
  });
});

describe("jobsctl update", () => {
  it("is for something to change, of a job that has not ended, and for writers", async () => {
    const id = await host.start("sleep", "1000");
    const nothing = await host.jobs(["update", id]);
    expect(nothing).toMatchObject({ code: 125, stdout: "", stderr: expect.stringContaining("nothing to change") });
    const reader = await host.jobs(["update", "--pids", "5", id], host.as("reader"));
    expect(reader).toMatchObject({ code: 1, stderr: expect.stringContaining("needs the role writer") });
    await host.jobs(["stop", "--grace", "0", id]);
    const late = await host.jobs(["update", "--pids", "5", id]);
    expect(late).toEqual({
      code: 1,
      stdout: "",
      stderr: `jobsctl: job ${id} has ended, and has no limits to change\n`,
    });
  });
});
