import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { unless } from "../../src/testing/root.ts";
import { type Host, startHost } from "../testing/host.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
/** Its module has a checksum in Go's database: the tool is the same on each machine. */
const MODULE = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3";
const BIN = join(ROOT, "node_modules/.cache/jobs-tests/bin");

/** Finds grpcurl, or builds it once, which takes a minute. */
function findGrpcurl(): { readonly path: string; readonly lacking?: string } {
  const path = join(BIN, "grpcurl");
  if (existsSync(path)) return { path };
  if (spawnSync("grpcurl", ["-version"]).status === 0) return { path: "grpcurl" };
  if (spawnSync("go", ["version"]).status !== 0) return { path, lacking: "it takes grpcurl, or Go to build it with" };
  mkdirSync(BIN, { recursive: true });
  const { status, stderr } = spawnSync("go", ["install", MODULE], { env: { ...process.env, GOBIN: BIN } });
  return status === 0
    ? { path }
    : { path, lacking: `go cannot install grpcurl: ${stderr.toString().trim().split("\n").at(-1)}` };
}

const { path: GRPCURL, lacking } = findGrpcurl();

describe("grpcurl, which knows nothing of the API", unless(lacking), () => {
  let host: Host;
  beforeAll(async () => {
    host = await startHost();
  });
  afterAll(async () => {
    await host[Symbol.asyncDispose]();
  });

  function grpcurl(role: "reader" | "writer", ...args: readonly string[]): string {
    const flags = ["-cacert", host.file("ca.crt"), "-cert", host.file(`${role}.crt`), "-key", host.file(`${role}.key`)];
    const server = args[0] === "-d" || args[0] === "-protoset" ? args.slice(0, 2) : [];
    return execFileSync(GRPCURL, [...flags, ...server, host.server, ...args.slice(server.length)], {
      encoding: "utf8",
    });
  }

  it("lists services and describes a method, as a reader", () => {
    expect(grpcurl("reader", "list").split("\n")).toContain("jobs.v1.WorkerService");
    expect(grpcurl("reader", "list", "jobs.v1.WorkerService")).toContain("jobs.v1.WorkerService.Stream\n");
    expect(grpcurl("reader", "describe", "jobs.v1.StartRequest")).toMatch(/string command = \d+;/);
  });

  it("starts a job as a writer, and streams its output as a reader", () => {
    const start = JSON.stringify({ command: "echo", args: ["hello"] });
    const { jobId } = JSON.parse(grpcurl("writer", "-d", start, "jobs.v1.WorkerService/Start"));
    const streamed = grpcurl("reader", "-d", JSON.stringify({ jobId, follow: true }), "jobs.v1.WorkerService/Stream");
    expect(streamed).toContain(`"output": "${Buffer.from("hello\n").toString("base64")}"`);
  });

  it("asks for health", () => {
    expect(grpcurl("reader", "grpc.health.v1.Health/List")).toContain('"jobs.v1.WorkerService"');
  });

  it("describes the API with its comments from the set of descriptors that the build makes", () => {
    const set = join(ROOT, "build/jobs.protoset");
    const described = execFileSync(GRPCURL, ["-protoset", set, "describe", "jobs.v1.WorkerService.Start"], {
      encoding: "utf8",
    });
    expect(described).toContain("// Starts a process in a cgroup of its own");
    const list = grpcurl("reader", "-protoset", set, "jobs.v1.WorkerService/List");
    expect(JSON.parse(list)).toHaveProperty("jobs");
  });
});
