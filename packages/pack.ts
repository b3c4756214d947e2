/*
 * npm run pack: what npm can install, as tarballs in build/packages.
 *
 *   jobsctl            the client and its library, for every system
 *   jobsd              the daemon and its worker library, for Linux
 *   jobsd-linux-ARCH   what is built from C, for x64 and arm64; npm takes the one that a machine needs
 *
 * What is foreign to this machine is built by Debian's cross compiler.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { cpSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import manifest from "../package.json" with { type: "json" };
import { bundleLibrary, bundleProgram, declareTypes, licencesOf } from "./bundle.ts";

const OUT = "build/packages";
const ARCHITECTURES = { x64: "x86_64-linux-gnu", arm64: "aarch64-linux-gnu" } as const;
type Architecture = keyof typeof ARCHITECTURES;

/** The oldest Nodes that run them: jobsd needs node:sqlite as Node 24.15 has it, and its suites run on those named here. */
const NODES = {
  jobsctl: { engines: ">=22", least: [22, 0] },
  jobsd: { engines: "^24.15.0 || >=26", least: [24, 15] },
} as const;

const { version, license } = manifest;
const { GITHUB_SERVER_URL, GITHUB_REPOSITORY } = process.env;
const common = {
  version,
  license,
  // npm's provenance asks for the repository that it was built in.
  ...(GITHUB_REPOSITORY && {
    repository: { type: "git", url: `git+${GITHUB_SERVER_URL ?? ""}/${GITHUB_REPOSITORY}.git` },
  }),
};
const types = { peerDependencies: { "@types/node": "*" }, peerDependenciesMeta: { "@types/node": { optional: true } } };

function library(name: "client" | "worker") {
  const files = { types: `./types/src/${name}/index.d.ts`, default: `./lib/${name}/index.js` };
  return { type: "module", exports: { [`./${name}`]: files, "./package.json": "./package.json" }, ...types };
}

async function packClient(): Promise<void> {
  const directory = open("jobsctl");
  await bundleProgram("jobsctl", directory, NODES.jobsctl.least);
  await bundleLibrary("client", directory, NODES.jobsctl.least[0]);
  cpSync("build/jobs.protoset", join(directory, "jobs.protoset"));
  const { exports, ...rest } = library("client");
  close(directory, {
    name: "jobsctl",
    description: "Starts, stops, queries and streams jobs of a jobsd: a program, and a library.",
    engines: { node: NODES.jobsctl.engines },
    bin: { jobsctl: "dist/jobsctl.js" },
    ...rest,
    exports: { ...exports, "./jobs.protoset": "./jobs.protoset" },
  });
}

async function packDaemon(): Promise<void> {
  const directory = open("jobsd");
  await bundleProgram("jobsd", directory, NODES.jobsd.least);
  await bundleLibrary("worker", directory, NODES.jobsd.least[0]);
  cpSync("bin/jobsd", join(directory, "bin/jobsd"));
  const names = Object.keys(ARCHITECTURES).map((architecture) => `jobsd-linux-${architecture}`);
  close(directory, {
    name: "jobsd",
    description:
      "Runs Linux processes as jobs in cgroups, for clients over mutual TLS; and as a library without a network.",
    engines: { node: NODES.jobsd.engines },
    os: ["linux"],
    cpu: Object.keys(ARCHITECTURES),
    bin: { jobsd: "bin/jobsd" },
    optionalDependencies: Object.fromEntries(names.map((name) => [name, version])),
    ...library("worker"),
  });
}

function packNative(architecture: Architecture): void {
  const directory = open(`jobsd-linux-${architecture}`);
  const built = `${OUT}/native-${architecture}`;
  const compiler = compilerFor(architecture);
  // Stripped, and static whatever the machine that builds has: it has to run on any Linux.
  const settings = [`OUT=../../${built}`, `CC=${compiler} -s`, "STATIC=-static"];
  execFileSync("make", ["--silent", "--directory", "src/supervisor", ...settings], { stdio: "inherit" });
  for (const file of ["supervisor", "verify.node", "notify.node"]) cpSync(join(built, file), join(directory, file));
  close(directory, {
    name: `jobsd-linux-${architecture}`,
    description: `What jobsd has in C, for Linux on ${architecture}.`,
    os: ["linux"],
    cpu: [architecture],
  });
}

/** This machine's compiler, or the one that builds for another. Ends the process where that is missing. */
function compilerFor(architecture: Architecture): string {
  const own = process.env["CC"] ?? "cc";
  const compiler = process.arch === architecture ? own : `${ARCHITECTURES[architecture]}-gcc`;
  if (spawnSync(compiler, ["--version"]).status === 0) return compiler;
  const debian = `gcc-${ARCHITECTURES[architecture].replace("_", "-")}`;
  return fail(`npm run pack needs ${compiler}, which is not here. On Debian: apt-get install ${debian}`);
}

function fail(message: string): never {
  process.stderr.write(`${message}\n`);
  process.exit(1);
}

function open(name: string): string {
  const directory = join(OUT, name);
  mkdirSync(directory, { recursive: true });
  return directory;
}

/** Writes what each package has beside its code, and makes the tarball. */
function close(directory: string, own: { readonly name: string; readonly [field: string]: unknown }): void {
  writeFileSync(join(directory, "package.json"), `${JSON.stringify({ ...own, ...common }, undefined, 2)}\n`);
  cpSync("LICENSE", join(directory, "LICENSE"));
  const licences = licencesOf(directory);
  if (licences !== "") writeFileSync(join(directory, "THIRD-PARTY-LICENSES"), licences);
  const readme = own.name.startsWith("jobsd-") ? undefined : `packages/${own.name}.md`;
  if (readme !== undefined) cpSync(readme, join(directory, "README.md"));
  const args = ["pack", "--silent", "--ignore-scripts", "--pack-destination", OUT, `./${directory}`];
  process.stdout.write(`${OUT}/${execFileSync("npm", args, { encoding: "utf8" })}`);
}

rmSync(OUT, { recursive: true, force: true });
declareTypes();
await packClient();
await packDaemon();
for (const architecture of ["x64", "arm64"] as const) packNative(architecture);
