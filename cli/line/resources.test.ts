import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { LinuxResources } from "../../proto/generated/jobs/v1/resources.ts";
import { UsageError } from "./parse.ts";
import { type Command, parse } from "./program.ts";
import { resources } from "./resources.ts";
import { type Host, startHost } from "../testing/host.ts";

const VALUED =
  "cpus cpu-shares cpuset-cpus cpuset-mems memory memory-reservation memory-swap pids io-weight io-max device resources";
const command: Command = {
  name: "",
  about: [],
  offline: true,
  flags: VALUED.split(" ").map((name) => ({ name, value: "VALUE", about: "" })),
  run: () => Promise.resolve(0),
};

/** What a command line asks for, in the API's JSON; undefined when it asks for no limits. */
function asked(...argv: string[]): unknown {
  const found = parse({ name: "test", version: "1", flags: [], commands: [command] }, argv);
  const part = found && resources(found.given);
  return part && LinuxResources.toJSON(LinuxResources.fromPartial(part));
}

let host: Host;
let file: string;
beforeAll(async () => {
  host = await startHost();
  file = join(host.dir, "limits.json");
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
});

describe("the flags of limits", () => {
  it("are nothing when none is given", () => {
    expect(asked()).toBeUndefined();
  });

  it.each<[string[], unknown]>([
    [["--cpus", "0.5", "--cpu-shares", "512"], { cpu: { quota: "50000", period: "100000", shares: "512" } }],
    [["--cpuset-cpus", "0-1", "--cpuset-mems", "0"], { cpu: { cpus: "0-1", mems: "0" } }],
    [["--memory", "256M", "--memory-swap=-1"], { memory: { limit: "268435456", swap: "-1" } }],
    [["--memory-reservation", "1g"], { memory: { reservation: "1073741824" } }],
    [["--pids", "0"], { pids: { limit: "0" } }],
    [["--io-weight", "500"], { blockIo: { weight: 500 } }],
    [
      ["--io-max", "/dev/sda:rbps=1M,wiops=2k", "--io-max", "8:16:rbps=max"],
      {
        blockIo: {
          throttleReadBpsDevice: [
            { major: "0", minor: "0", path: "/dev/sda", rate: "1048576" },
            { major: "8", minor: "16", rate: "0" },
          ],
          throttleWriteIopsDevice: [{ major: "0", minor: "0", path: "/dev/sda", rate: "2000" }],
        },
      },
    ],
    [
      ["--device", "/dev/fuse:rw", "--device", "c:10:*", "--device=/dev/null"],
      {
        devices: [
          { allow: true, path: "/dev/fuse", access: "rw" },
          { allow: true, type: "c", major: "10" },
          { allow: true, path: "/dev/null" },
        ],
      },
    ],
  ])("%j are %j", (argv, expected) => {
    expect(asked(...argv)).toEqual(expected);
  });

  it("override a file's fields, and leave the others", async () => {
    const device = { major: 8, minor: 0, rate: 1 };
    const blockIO = { weight: 10, throttleReadBpsDevice: [device], throttleReadIOPSDevice: [device] };
    const cpu = { shares: 2, cpus: "0" };
    await writeFile(file, JSON.stringify({ cpu, pids: { limit: 9 }, blockIO, unified: { "memory.high": "max" } }));
    expect(asked("--resources", file, "--cpuset-cpus", "1", "--pids", "1", "--io-max", "8:0:rbps=2")).toEqual({
      cpu: { shares: "2", cpus: "1" },
      pids: { limit: "1" },
      blockIo: {
        weight: 10,
        throttleReadBpsDevice: [
          { major: "8", minor: "0", rate: "1" },
          { major: "8", minor: "0", rate: "2" },
        ],
        throttleReadIopsDevice: [{ major: "8", minor: "0", rate: "1" }],
      },
      unified: { "memory.high": "max" },
    });
  });

  it("allow devices besides the file's", async () => {
    await writeFile(file, JSON.stringify({ devices: [{ allow: true, access: "r" }] }));
    expect(asked("--resources", file, "--device", "b:8:0")).toEqual({
      devices: [
        { allow: true, access: "r" },
        { allow: true, type: "b", major: "8", minor: "0" },
      ],
    });
  });

  it("name the file that cannot be read", () => {
    expect(() => asked("--resources", "/no/such/file")).toThrow(UsageError);
    expect(() => asked("--resources", "/no/such/file")).toThrow("--resources: /no/such/file cannot be read: ENOENT");
  });
});

describe("jobsctl start --resources", () => {
  it("takes a file, and says what in it this host does not keep", async () => {
    await writeFile(file, '{ "memory": { "swappiness": 60 } }');
    expect(await host.jobs(["start", "--resources", file, "--", "true"])).toMatchObject({
      code: 125,
      stdout: "",
      stderr: expect.stringContaining("resources.memory.swappiness: cgroup v2 has no file for it"),
    });
    await writeFile(file, '{ "memory": { "swapiness": 60 } }');
    expect(await host.jobs(["start", "--resources", file, "--", "true"])).toMatchObject({
      code: 125,
      stdout: "",
      stderr: expect.stringContaining(`--resources ${file}: memory.swapiness is not a field`),
    });
  });

  it("takes stdin", async () => {
    const running = host.launch(["run", "--resources", "-", "--", "echo", "ran"]);
    running.child.stdin?.end('{ "network": { "classID": 1 } }');
    expect(await running.ended).toMatchObject({
      code: 125,
      stderr: expect.stringContaining("resources.network.classID"),
    });
    const without = host.launch(["run", "--resources", "-", "--", "echo", "ran"]);
    without.child.stdin?.end("{}");
    expect(await without.ended).toMatchObject({ code: 0, stdout: "ran\n" });
  });
});
