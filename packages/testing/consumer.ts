import { execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join, resolve } from "node:path";

const ROOT = resolve(import.meta.dirname, "../..");
const OUT = join(ROOT, "build/packages");
/** What the registry is asked for but once. */
const CACHE = join(ROOT, "node_modules/.cache/packages");

export const { version } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8")) as { readonly version: string };

/** The tarball of a package. */
export const tarball = (name: string): string => join(OUT, `${name}-${version}.tgz`);

/** Debian's packages that cross-compile for arm64 and run its programs here, by a file of each. */
const ARM64: Readonly<Record<string, string>> = {
  "/usr/bin/aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
  "/usr/aarch64-linux-gnu/lib/libc.a": "libc6-dev-arm64-cross",
  "/usr/aarch64-linux-gnu/lib/libstdc++.so.6": "libstdc++6-arm64-cross",
  "/usr/aarch64-linux-gnu/lib/libatomic.so.1": "libatomic1-arm64-cross",
  "/usr/bin/qemu-aarch64-static": "qemu-user-static",
};

/** Installs what is missing of them, as root on Debian. Throws Error that names them elsewhere. */
export function installCrossTools(): void {
  const missing = Object.entries(ARM64).flatMap(([file, name]) => (existsSync(file) ? [] : [name]));
  if (missing.length === 0) return;
  const command = `apt-get install ${missing.join(" ")}`;
  if (process.getuid?.() !== 0 || !existsSync("/usr/bin/apt-get"))
    throw new Error(`packages for arm64 are missing here; on Debian: ${command}`);
  process.stdout.write(`${command}\n`);
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  execFileSync("apt-get", ["update", "-q"], { env, stdio: "ignore" });
  execFileSync("apt-get", ["install", "-q", "-y", "--no-install-recommends", ...missing], { env, stdio: "ignore" });
}

/** A directory with one package of the registry in it, which is asked once. */
export function fromRegistry(name: string, at: string): string {
  const directory = join(CACHE, `${name.replaceAll("/", "-")}-${at}`);
  const installed = join(directory, "node_modules", name);
  if (existsSync(installed)) return installed;
  mkdirSync(directory, { recursive: true });
  writeFileSync(join(directory, "package.json"), "{}\n"); // or npm would install into the project around it
  npm(directory, ["install", `${name}@${at}`]);
  return installed;
}

/** The directory of a Node of this version, as PATH has it; of another processor's, too, which npm would not install. */
export function nodeOf(at: string, architecture: string = process.arch): string {
  const name = `node-linux-${architecture}`;
  const directory = join(CACHE, `${name}-${at}`);
  const bin = join(directory, "package/bin");
  if (existsSync(bin)) return bin;
  mkdirSync(directory, { recursive: true });
  const packed = execFileSync("npm", ["pack", "--silent", `${name}@${at}`], {
    cwd: directory,
    encoding: "utf8",
  }).trim();
  execFileSync("tar", ["xzf", packed], { cwd: directory });
  rmSync(join(directory, packed));
  return bin;
}

function npm(cwd: string, args: readonly string[], env = process.env): void {
  execFileSync("npm", [...args, "--no-audit", "--no-fund"], { cwd, env, stdio: ["ignore", "ignore", "pipe"] });
}

export interface Ran {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** An empty folder into which packages are installed, and in which a Node of one version runs. */
export interface Consumer extends Disposable {
  readonly directory: string;
  /** Installs tarballs, and refuses a Node that a package does not claim. Throws with what npm says. */
  install(...packages: readonly string[]): void;
  write(name: string, text: string): void;
  run(program: string, args: readonly string[], env?: NodeJS.ProcessEnv): Ran;
  /** Starts an installed jobsd with the certificates of a folder. Resolves to its address and what ends it. */
  serve(certs: string): Promise<AsyncDisposable & { readonly server: string }>;
}

/** @param node the directory of the Node that npm and all programs run on */
export function consumer(node: string): Consumer {
  const directory = mkdtempSync(join(tmpdir(), "jobs-consumer-"));
  const bin = join(directory, "node_modules/.bin");
  const base = { PATH: [bin, node, process.env["PATH"]].join(delimiter), HOME: process.env["HOME"] ?? "/" };
  const write: Consumer["write"] = (name, text) => {
    mkdirSync(join(directory, name, ".."), { recursive: true });
    writeFileSync(join(directory, name), text);
  };
  write("package.json", `{ "private": true, "type": "module" }\n`);
  return {
    directory,
    write,
    install: (...packages) => npm(directory, ["install", "--engine-strict", ...packages], { ...process.env, ...base }),
    run(program, args, env = {}) {
      const { status, stdout, stderr } = spawnSync(program, args, {
        cwd: directory,
        env: { ...base, ...env },
        encoding: "utf8",
        timeout: 120_000,
        killSignal: "SIGKILL",
      });
      return { status, stdout, stderr };
    },
    async serve(certs) {
      const tls = ["--ca", `${certs}/ca.crt`, "--cert", `${certs}/worker.crt`, "--key", `${certs}/worker.key`];
      const words = ["--listen", "127.0.0.1:0", "--state", `state-${certs}`, "--log-level", "warn", ...tls];
      const child = spawn("jobsd", words, { cwd: directory, env: base, stdio: ["ignore", "pipe", "inherit"] });
      const exited = once(child, "exit");
      const [line] = await Promise.race([once(child.stdout, "data"), exited]);
      const server = /^listening on (\S+)/.exec(String(line))?.[1];
      if (server === undefined) throw new Error(`jobsd did not start: ${String(line)}`);
      return {
        server,
        async [Symbol.asyncDispose]() {
          child.kill("SIGTERM");
          await exited;
        },
      };
    },
    [Symbol.dispose]: () => rmSync(directory, { recursive: true, force: true }),
  };
}

/** The code of docs/library.md, by the library that it imports. */
export function documented(library: "jobsctl/client" | "jobsd/worker"): string {
  const page = readFileSync(join(ROOT, "docs/library.md"), "utf8");
  const codes = [...page.matchAll(/^```js\n([\s\S]*?)^```$/gm)].map(([, code = ""]) => code);
  const code = codes.find((each) => each.includes(`from "${library}"`));
  if (code === undefined) throw new Error(`docs/library.md has no code for ${library}`);
  return code;
}
