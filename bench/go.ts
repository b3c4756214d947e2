import { execFile, spawn } from "node:child_process";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { connect, type Client } from "../src/client/index.ts";
import { address, type Bench, checkout, credentialsOf, groupOf, within } from "./harness.ts";

/** Whoever serves jobs: jobsd, or the bare server in Go. Disposing ends it. */
export interface Server extends AsyncDisposable {
  readonly pid: number;
  readonly address: string;
  readonly client: Client;
  /** The group that holds it and its jobs; "" without cgroup v2. */
  readonly group: string;
}

/** The programs in bench/go. */
export interface Go {
  startBare(): Promise<Server>;
  /** Has the client in Go measure a server; resolves to what it found: see bench/go/client. */
  measure(server: Server, ...mode: readonly (string | number)[]): Promise<number[]>;
}

/** Builds bench/go. Resolves to undefined where no Go is. */
export async function openGo(bench: Bench): Promise<Go | undefined> {
  const run = promisify(execFile);
  const cwd = checkout("bench/go");
  if (!(await run("go", ["version"], { cwd }).catch(() => undefined))) return undefined;
  await run(checkout("node_modules/.bin/buf"), ["generate", "../../proto", "--template", "buf.gen.yaml"], { cwd });
  const programs = join(bench.directory, "go");
  mkdirSync(programs);
  await run("go", ["build", "-o", programs, "./client", "./server"], { cwd });
  const pems = (role: string): string[] => ["ca.crt", `${role}.crt`, `${role}.key`].map(bench.pem);
  return {
    startBare: () => startBare(bench, join(programs, "server"), pems("worker")),
    async measure(server, ...mode) {
      const args = [server.address, ...pems("writer"), ...mode.map(String)];
      const client = run(join(programs, "client"), args, { maxBuffer: 2 ** 26 });
      bench.adopt(client.child);
      const found: number | number[] | null = JSON.parse((await client).stdout);
      return [found ?? []].flat();
    },
  };
}

let count = 0;

async function startBare(bench: Bench, program: string, pems: readonly string[]): Promise<Server> {
  const name = `bare-${++count}`;
  const [directory, group] = [join(bench.directory, name), groupOf(bench, name)];
  mkdirSync(directory);
  const jobs = group === "" ? "" : join(group, "jobs");
  const [command, ...args] = within(group, [program, ...pems, jobs, directory]);
  const child = bench.adopt(spawn(command, args, { detached: true, stdio: ["ignore", "pipe", "inherit"] }));
  const found = await address(child, () => "the bare Go server did not start");
  const client = connect(credentialsOf(found, bench.pem, "writer"));
  return {
    pid: child.pid ?? 0,
    address: found,
    client,
    group,
    async [Symbol.asyncDispose]() {
      client.close();
      child.kill("SIGKILL");
      await Promise.resolve();
    },
  };
}
