import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Host, JOBSCTL, JOBSD, startHost } from "../testing/host.ts";

const run = promisify(execFile);
/** A byte that is no UTF-8, which a shell alone can put into a word. */
const BYTE = "$(printf '\\377')";

let host: Host;
beforeAll(async () => {
  host = await startHost();
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
});

/** Has a shell run a command line, in which $JOBSCTL is the client; resolves to the code and the bytes that it printed. */
async function shell(line: string): Promise<{ code: number; stdout: string; stderr: string }> {
  const env = { ...process.env, ...host.as("writer"), NODE: process.execPath, JOBSCTL, JOBSD };
  try {
    return { code: 0, ...(await run("sh", ["-c", line], { encoding: "latin1", env })) };
  } catch (error) {
    const { code, stdout, stderr } = error as { code: number; stdout: string; stderr: string };
    return { code, stdout, stderr };
  }
}

describe("bytes that are not UTF-8", () => {
  it.each([
    ["an argument", `-- printf %s "a${BYTE}b"`, "a\xffb"],
    ["a variable's value", `--env "V=a${BYTE}" -- sh -c 'printf %s "$V"'`, "a\xff"],
    ["a variable's name", `--env "V${BYTE}=1" -- env`, "V\xff=1\n"],
    ["a replacement character beside them", `-- printf %s "\ufffd${BYTE}"`, "\xef\xbf\xbd\xff"],
    ["the program's path", `-- "/bin/../bin/echo${BYTE}"`, ""],
  ])("reach a job in %s as they were given", async (what, line, output) => {
    const ran = await shell(`exec "$NODE" "$JOBSCTL" run ${Buffer.from(line).toString()}`);
    if (what === "the program's path")
      expect(ran).toMatchObject({ code: 127, stderr: expect.stringContaining("echo") });
    else expect(ran).toMatchObject({ code: 0, stdout: expect.stringContaining(output) });
  });

  it("reach a job in a variable that the client's environment has", async () => {
    const ran = await shell(`V="x${BYTE}" exec "$NODE" "$JOBSCTL" run --env V -- sh -c 'printf %s "$V"'`);
    expect(ran).toEqual({ code: 0, stdout: "x\xff", stderr: "" });
  });

  it("reach a job in its directory's name, and are told in text and in JSON", async () => {
    const made = `d="${host.dir}/d${BYTE}"; mkdir -p "$d"; chmod 755 "$d"`;
    const ran = await shell(
      `${made}; "$NODE" "$JOBSCTL" run --cwd "$d" --label of=bytes -- sh -c 'pwd; : "$0"' "${BYTE}'"`,
    );
    expect(ran).toMatchObject({ code: 0, stdout: `${join(host.dir, "d\xff")}\n` });
    const listed = await shell(`"$NODE" "$JOBSCTL" list --label of=bytes`);
    expect(listed.stdout).toContain("$'\\xff\\''");
    const queried = await shell(`"$NODE" "$JOBSCTL" list --label of=bytes -o json`);
    const [job] = (JSON.parse(queried.stdout) as { jobs: Record<string, string>[] }).jobs;
    expect(job?.["args"]).toEqual(["-c", 'pwd; : "$0"', "\\xff'"]);
    expect(Buffer.from(job?.["cwdBytes"] ?? "", "base64").toString("latin1")).toBe(join(host.dir, "d\xff"));
  });

  it.each([
    ["a label", `"$JOBSCTL" run --label "a=${BYTE}" -- true`, "--label"],
    ["a user", `"$JOBSCTL" run --user "${BYTE}" -- true`, "--user"],
    ["an id", `"$JOBSCTL" query "${BYTE}"`, "query"],
    ["a setting of the client", `"$JOBSCTL" list`, "JOBS_CERT", `JOBS_CERT="${BYTE}" `],
    ["a flag of the daemon", `"$JOBSD" --state "/tmp/${BYTE}"`, "--state"],
    ["a setting of the daemon", `"$JOBSD" --check`, "JOBSD_CGROUP", `JOBSD_CGROUP="${BYTE}" `],
  ])("are refused in %s, which is named", async (_, line, name, before = "") => {
    const { code, stderr } = await shell(`${before}"$NODE" ${line}`);
    expect(stderr).toContain(name);
    expect(stderr).toContain("is not UTF-8");
    expect(code).toBe(125);
  });
});
