import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { constants, existsSync, readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Host, JOBSCTL, JOBSD, startHost } from "../testing/host.ts";

const run = promisify(execFile);

let host: Host;
let id: string;
let env: NodeJS.ProcessEnv;
beforeAll(async () => {
  host = await startHost();
  id = await host.start("sh", "-c", "echo up; exec sleep 600");
  const daemon = { JOBSD_LISTEN: "127.0.0.1:0", JOBSD_STATE: `${host.dir}/other`, ...host.certificates };
  env = {
    ...process.env,
    ...host.as("writer"),
    ...daemon,
    NODE: process.execPath,
    JOBSCTL,
    JOBSD,
    ID: id,
    DIR: host.dir,
  };
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
});

describe("a descriptor that the caller shares with other programs stays as it was", () => {
  const programs = [
    ["jobsctl stream", `"$NODE" -- "$JOBSCTL" stream --follow "$ID"`],
    ["jobsctl stats", `"$NODE" -- "$JOBSCTL" stats "$ID"`],
    ["jobsctl run", `"$NODE" -- "$JOBSCTL" run -- sh -c "echo up; exec sleep 600"`],
    ["jobsd", `"$NODE" -- "$JOBSD"`],
  ] as const;
  const pipes = programs.map(([name, line]) => [name, "pipe", line, "2>&1 | cat"] as const);
  const sockets = programs.slice(0, 3).map(([name, line]) => [name, "socket", line, ""] as const);

  it.each([...pipes, ...sockets])("by %s, where it is a %s", async (_, kind, line, through) => {
    const flags = `${host.dir}/flags`;
    // The shell looks at what it shares with the program once that has written.
    const script = `{ exec 9>&1; ${line} & read go; cat /proc/self/fdinfo/9 >"${flags}"; kill $!; wait $!; } ${through}`;
    const child = spawn("sh", ["-c", script], { env, stdio: ["pipe", "pipe", "ignore"] });
    await once(child.stdout, "data");
    child.stdin.end("\n");
    await once(child.stdout.resume(), "end");
    const [, octal = ""] = /^flags:\s+(\d+)$/m.exec(readFileSync(flags, "utf8")) ?? [];
    expect([kind, Number.parseInt(octal, 8) & constants.O_NONBLOCK]).toEqual([kind, 0]);
  });

  it("so that they can write to it while its reader waits", async () => {
    const script = `( "$NODE" -- "$JOBSCTL" stream --follow "$ID" & seq 1 300000; echo $? >"$DIR/seq"; kill $! ) | (sleep 2; tail -n 1)`;
    expect((await run("sh", ["-c", script], { env })).stdout).toBe("300000\n");
    expect(readFileSync(`${host.dir}/seq`, "utf8")).toBe("0\n");
  });

  it("and what is written to one file by way of two stays in order", async () => {
    const script = `"$NODE" -- "$JOBSCTL" stream "$1" >"$DIR/both" 2>&1`;
    const job = await host.start("sh", "-c", "for i in 1 2 3 4 5 6; do echo $i; echo $i >&2; sleep 0.02; done");
    await host.jobs(["wait", job]);
    await run("sh", ["-c", script, "sh", job], { env });
    expect(readFileSync(`${host.dir}/both`, "utf8")).toBe("1\n1\n2\n2\n3\n3\n4\n4\n5\n5\n6\n6\n");
  });
});

describe("stdout that takes no more", () => {
  it.each(["list", "query", "stream"])("ends jobs %s with what is wrong", async (command) => {
    const script = `"$NODE" -- "$JOBSCTL" ${command} ${command === "list" ? "" : `"$ID"`} >/dev/full`;
    const full = run("sh", ["-c", script], { env });
    await expect(full).rejects.toMatchObject({ code: 1, stderr: expect.stringMatching(/^jobsctl: stdout: ENOSPC/) });
  });

  it.each(["list", "--help", "query"])("ends jobs %s quietly, where its reader has gone", async (command) => {
    const status = `${host.dir}/status-${command}`;
    const script = `{ sleep 0.5; "$NODE" -- "$JOBSCTL" ${command} ${command === "query" ? '"$ID"' : ""}; echo $? >"${status}"; } | true`;
    const { stderr } = await run("sh", ["-c", script], { env });
    for (let tries = 0; !existsSync(status) && tries < 100; tries++) await new Promise((next) => setTimeout(next, 100));
    expect({ stderr, status: readFileSync(status, "utf8") }).toEqual({ stderr: "", status: "141\n" });
  });
});

it("the help, which is to be there at once, loads neither sockets nor terminals nor gRPC where it is written to a file", async () => {
  const telling = `process.on("exit", () => require("node:fs").writeFileSync(process.env.LOADED, process.moduleLoadList.join("\\n")))`;
  const loaded = `${host.dir}/loaded`;
  await writeFile(`${host.dir}/telling.cjs`, telling);
  const script = `"$NODE" --require "$DIR/telling.cjs" -- "$JOBSCTL" --help >/dev/null`;
  await run("sh", ["-c", script], { env: { ...env, LOADED: loaded } });
  const modules = readFileSync(loaded, "utf8").split("\n");
  expect(modules).toContain("NativeModule fs");
  expect(modules.filter((name) => /^NativeModule (net|tty|http2|crypto)$/.test(name))).toEqual([]);
});
