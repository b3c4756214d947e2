import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { connect, createServer, type AddressInfo } from "node:net";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

/* Real S3 servers. */

export const BUCKET = "logs";
/** s3rver knows no others. */
const KEY_ID = "S3RVER";
const SECRET = "S3RVER";

/** An S3 server with an empty bucket. */
export interface S3Server extends AsyncDisposable {
  readonly port: number;
  /** The file in which the server keeps an object's bytes. */
  object(key: string): string;
}

/**
 * Two, since they differ in what a client has to live with: s3rver is on npm, makes no checksums, and has no list of
 * uploads; versitygw makes them and refuses what is not as its checksum says, and is built where there is Go.
 */
export const servers: readonly {
  readonly name: string;
  readonly checksums: boolean;
  readonly start: (() => Promise<S3Server>) | undefined;
}[] = [
  { name: "s3rver", checksums: false, start: startS3rver },
  { name: "versitygw", checksums: true, start: hasGo() ? startVersitygw : undefined },
];

/** Sets the variables in which the SDK finds credentials. */
export function credentials(secret = SECRET): void {
  process.env["AWS_ACCESS_KEY_ID"] = KEY_ID;
  process.env["AWS_SECRET_ACCESS_KEY"] = secret;
}

async function startS3rver(): Promise<S3Server> {
  const directory = mkdtempSync(join(tmpdir(), "jobs-s3rver-"));
  const S3rver = createRequire(import.meta.url)("@20minutes/s3rver") as new (options: object) => {
    run(): Promise<AddressInfo>;
    close(): Promise<void>;
  };
  const server = new S3rver({
    address: "127.0.0.1",
    port: 0,
    silent: true,
    directory,
    configureBuckets: [{ name: BUCKET }],
  });
  const { port } = await server.run();
  return {
    port,
    object: (key) => join(directory, BUCKET, `${key}._S3rver_object`),
    async [Symbol.asyncDispose]() {
      await server.close();
      rmSync(directory, { recursive: true });
    },
  };
}

const VERSITYGW = "v1.8.0";

function hasGo(): boolean {
  try {
    execFileSync("go", ["version"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}

/** Builds it once; that takes a minute or two. */
function versitygw(): string {
  const cache = join(process.env["XDG_CACHE_HOME"] || join(homedir(), ".cache"), "jobs-tests");
  const program = join(cache, `versitygw-${VERSITYGW}`);
  if (existsSync(program)) return program;
  mkdirSync(cache, { recursive: true });
  const fresh = mkdtempSync(join(cache, "new-"));
  execFileSync("go", ["install", `github.com/versity/versitygw/cmd/versitygw@${VERSITYGW}`], {
    env: { ...process.env, GOBIN: fresh },
    stdio: ["ignore", "ignore", "inherit"],
  });
  renameSync(join(fresh, "versitygw"), program);
  rmSync(fresh, { recursive: true });
  return program;
}

async function startVersitygw(): Promise<S3Server> {
  const program = versitygw();
  const directory = mkdtempSync(join(tmpdir(), "jobs-versitygw-"));
  mkdirSync(join(directory, BUCKET));
  // versitygw does not take port 0, and tells no port.
  const finder = createServer().listen(0, "127.0.0.1");
  await once(finder, "listening");
  const { port } = finder.address() as AddressInfo;
  finder.close();
  const child = spawn(program, ["--port", `127.0.0.1:${port}`, "--quiet", "posix", directory], {
    env: { ROOT_ACCESS_KEY_ID: KEY_ID, ROOT_SECRET_ACCESS_KEY: SECRET },
    stdio: "ignore",
  });
  for (const deadline = Date.now() + 20_000; !(await listens(port)); await delay(20))
    if (Date.now() > deadline || child.exitCode !== null) throw new Error("versitygw does not listen");
  return {
    port,
    object: (key) => join(directory, BUCKET, key),
    async [Symbol.asyncDispose]() {
      child.kill();
      await once(child, "exit");
      rmSync(directory, { recursive: true });
    },
  };
}

async function listens(port: number): Promise<boolean> {
  const socket = connect(port, "127.0.0.1");
  try {
    await once(socket, "connect");
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}
