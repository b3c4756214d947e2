import { execFileSync } from "node:child_process";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { isRoot, needsRoot } from "../../src/testing/root.ts";
import { type Host, launch, startHost } from "../testing/host.ts";

interface Examined {
  readonly findings: readonly Record<"area" | "name" | "state" | "meaning", string>[];
  readonly time?: string;
}

let host: Host;
beforeAll(async () => {
  host = await startHost();
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
});

function check(...flags: readonly string[]) {
  return launch("jobsd", ["--check", ...flags]).ended;
}

/** The worker's findings, without the client's and those of the command line of `jobsd --check`. */
function ofWorker({ findings }: Examined): string[] {
  return findings.flatMap(({ area, name, state }) =>
    ["client", "configuration"].includes(area) ? [] : [`${area} ${name} ${state}`],
  );
}

describe("jobsctl doctor", () => {
  it("tells what of the client's own matters, then the worker's findings, and exits as they are", async () => {
    const { code, stdout, stderr } = await host.jobs(["doctor"], host.as("reader"));
    const text = Buffer.from(stdout, "latin1").toString();
    expect(text).toMatch(
      /^client +✓ worker +127\.0\.0\.1:\d+\n +✓ certificate +CN=reader, signed by CN=jobs CA, until \S+, \d+ days left\n/,
    );
    expect(text).toMatch(/^ +✓ role +reader: may look/m);
    expect(text).toMatch(/^ +✓ clock +as the worker's, to [\d.]+m?s$/m);
    expect(text).toMatch(/^controller +[✓✗] cpu +/m);
    expect(text).toMatch(/(all of it is enforced|\d+ (missing|limited))\n$/);
    expect(text).not.toContain("\x1b");
    expect({ code, stderr }).toEqual({ code: / ✗ /.test(text) ? 1 : 0, stderr: "" });
  });

  it("is red and green on a terminal only where that is wanted", async () => {
    expect((await host.jobs(["doctor"], { FORCE_COLOR: "1" })).stdout).toContain("\x1b[32m");
  });

  it("gives the API's own message as JSON, with the client's findings in front", async () => {
    const told: Examined = JSON.parse((await host.jobs(["doctor", "-o", "json"])).stdout);
    expect(told.findings.slice(0, 4).map(({ area, name }) => `${area} ${name}`)).toEqual([
      "client worker",
      "client certificate",
      "client role",
      "client clock",
    ]);
    expect(Date.parse(told.time ?? "")).toBeGreaterThan(Date.now() - 60_000);
  });

  it("without a worker tells what it knows, why nobody answers, and what to do, and exits with 125", async () => {
    const refused = await host.jobs(["doctor"], { JOBS_SERVER: "127.0.0.1:1" });
    expect(Buffer.from(refused.stdout, "latin1").toString()).toMatch(/^client +✓ certificate .*\n +✓ role .*\n$/);
    expect(refused.stderr).toMatch(/^jobsctl: no connection: nobody listens at 127\.0\.0\.1:1\n +check the address/);
    expect(refused.code).toBe(125);
    const files = { JOBS_CERT: host.file("worker.crt"), JOBS_KEY: host.file("worker.key") };
    const wrong = await host.jobs(["doctor", "-o", "json"], files);
    expect(JSON.parse(wrong.stdout)).toMatchObject({
      findings: [
        {
          name: "certificate",
          state: "FINDING_STATE_MISSING",
          reason: expect.stringContaining("is not for clients"),
        },
        { name: "role", state: "FINDING_STATE_MISSING", remedy: "sign one with --role reader, writer or admin" },
      ],
    });
    expect(wrong.code).toBe(125);
  });
});

describe("jobsd --check", () => {
  it("finds beside a daemon what the daemon finds, without its lock", async () => {
    const told: Examined = JSON.parse((await host.jobs(["doctor", "-o", "json"])).stdout);
    const flags = ["--state", join(host.dir, "state"), ...(isRoot ? ["--user", "nobody"] : [])];
    const { code, stdout, stderr } = await launch("jobsd", ["--check", "--json", ...flags], host.certificates).ended;
    expect(ofWorker(JSON.parse(stdout))).toEqual(ofWorker(told));
    expect({ code, stderr }).toEqual({ code: stdout.includes("STATE_MISSING") ? 1 : 0, stderr: "" });
  });

  it("needs no flag, and makes no state directory", async () => {
    expect(Buffer.from((await check()).stdout, "latin1").toString()).toMatch(/^cgroup +[✓✗] v2 /);
    const state = join(host.dir, "unmade");
    await check("--state", state);
    await expect(rm(state, { recursive: true })).rejects.toThrow("ENOENT");
  });

  it("exits with 125 where no daemon could start, and says why", async () => {
    const tls = ["--ca", host.file("ca.crt"), "--cert", host.file("worker.crt"), "--key"];
    const wrong = await check(...tls, host.file("writer.key"));
    expect(wrong.code).toBe(125);
    expect(wrong.stdout).toMatch(/no daemon starts\n.*does not belong to the certificate of /);
    expect((await check(...tls, host.file("worker.key"))).code).toBeLessThan(2);
    const below = await check("--state", join(host.file("ca.crt"), "state"));
    expect({ code: below.code, end: below.stdout.split(": ").at(-1) }).toEqual({
      code: 125,
      end: "no daemon starts here\n",
    });
  });

  it("says who jobs run as, and whom a start may name", needsRoot, async () => {
    const told = async (...flags: readonly string[]) => {
      const { findings }: Examined = JSON.parse((await check("--json", ...flags)).stdout);
      return findings.filter(({ area }) => area === "user").map(({ meaning }) => meaning);
    };
    expect(await told()).toEqual([
      "each job has a uid and a gid of its own, of 2100000000-2100065535",
      "a start may name no user",
    ]);
    const users = [
      "--allow-user",
      "daemon,2000-2999",
      "--allow-user",
      "bin",
      "--allow-root",
      "--allow-group",
      "shadow",
    ];
    expect(await told("--job-uids", "5000000-5000999", ...users)).toEqual([
      "each job has a uid and a gid of its own, of 5000000-5000999",
      "a start may name daemon, 2000-2999, bin, root, with their own groups; and the groups shadow, root",
    ]);
    const groups = execFileSync("id", ["-Gn", "nobody"], { encoding: "utf8" }).trim().replaceAll(" ", ", ");
    expect(await told("--user", "nobody")).toEqual([
      `jobs run as nobody, with the groups ${groups}`,
      "a start may name nobody, with their own groups",
    ]);
    const { stdout } = await launch("jobsd", ["--check"], { JOBSD_ALLOW_USER: "daemon,bin" }).ended;
    expect(stdout).toContain("a start may name daemon, bin, with their own groups\n");
    expect(await told("--job-uids", "65000-65999")).toEqual(["no daemon starts"]);
    for (const [flag, user] of [
      ["--user", "nosuchuser"],
      ["--allow-user", "root"],
    ] as const) {
      const refused = { code: 125, stdout: "", stderr: expect.stringMatching(`^jobsd: ${flag}: `) };
      expect(await check(flag, user)).toEqual(refused);
    }
  });

  it("refuses a wrong command line as ever", async () => {
    expect(await check("--log-limit", "lots")).toMatchObject({ code: 125, stdout: "" });
  });
});
