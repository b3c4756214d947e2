import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, resolve, sep } from "node:path";
import { type Plugin, type RolldownOptions, rolldown } from "rolldown";
import programs from "../rolldown.config.ts";

/* The JavaScript and the declarations of npm's packages: what they import is in them, so that they have no dependencies. */

/** Where tsc puts a declaration for each source file, and where the messages are that buf makes. */
const [TYPES, MESSAGES] = ["build/packages/types", "build/packages/messages"];

/** What a consumer's compiler may not have of itself, whatever its `types` and `target` are. */
const REFERENCES = '/// <reference types="node" />\n/// <reference lib="es2024.promise" />\n';

/** Gives certificates their dates as Date, which Node has from 22.10 on. */
const DATES = `for (const [name, text] of [["validFromDate", "validFrom"], ["validToDate", "validTo"]])
  if (!(name in Certificate.prototype))
    Object.defineProperty(Certificate.prototype, name, { get() { return new Date(this[text]); } });`;

/** What stands before a program: what finds the Node to run it, and words for a Node that is too old. */
function bannerOf(name: string, [major, minor]: readonly [number, number]): string {
  const needed = minor > 0 ? `${major}.${minor}` : String(major);
  return `#!/usr/bin/env node
{ const [major, minor] = process.versions.node.split(".").map(Number);
  if (major < ${major} || (major === ${major} && minor < ${minor})) {
    process.stderr.write("${name}: needs Node ${needed} or newer; this is " + process.version + "\\n");
    process.exit(125);
  }
  if (major === 22 && minor < 10) { const { X509Certificate: Certificate } = require("node:crypto"); ${DATES} } }`;
}

/** Bundles one of the programs into DIR/dist, for a Node of at least this version. */
export async function bundleProgram(
  name: "jobsctl" | "jobsd",
  directory: string,
  least: readonly [number, number],
): Promise<void> {
  const { output, plugins, ...rest } = programs;
  await using bundle = await rolldown({
    ...rest,
    onLog: refuse,
    input: { [name]: programs.input[name] },
    // Node has process.getBuiltinModule from 22.3 on.
    transform: { target: `node${least[0]}`, define: { "process.getBuiltinModule": "require" } },
    plugins: [plugins, licences(directory)],
  });
  await bundle.write({
    ...output,
    dir: join(directory, "dist"),
    banner: ({ isEntry }) => (isEntry ? bannerOf(name, least) : ""),
  });
}

/** Bundles one of the libraries into DIR/lib/NAME: index.js with its chunks; its declarations into DIR/types. */
export async function bundleLibrary(name: "client" | "worker", directory: string, major: number): Promise<void> {
  const dir = join(directory, "lib", name);
  await using bundle = await rolldown({
    input: { index: `src/${name}/index.ts` },
    platform: "node",
    onLog: refuse,
    transform: { target: `node${major}` },
    plugins: [licences(directory)],
  });
  const banner = major < 24 ? `import { X509Certificate as Certificate } from "node:crypto";\n${DATES}` : "";
  await bundle.write({ dir, format: "esm", chunkFileNames: "[name]-[hash].js", banner });
  copyTypes(name, directory);
}

/** Has tsc write a declaration for each file that the libraries import, and for the messages. */
export function declareTypes(): void {
  const bin = (name: string): string => resolve("node_modules/.bin", name);
  execFileSync(bin("buf"), ["generate", "--template", "../packages/buf.gen.yaml"], { cwd: "proto", stdio: "inherit" });
  execFileSync(bin("tsc"), ["--project", "packages"], { stdio: "inherit" });
}

/**
 * Copies a library's declarations into DIR/types: index.d.ts and what that imports. The messages' own are in the place of
 * those that tell how messages are encoded, too, which no consumer sees and whose types are other packages'.
 */
function copyTypes(name: "client" | "worker", directory: string): void {
  const files = new Set([`src/${name}/index.d.ts`]);
  for (const file of files) {
    const written = readFileSync(join(TYPES, file.replace("proto/generated", MESSAGES)), "utf8");
    const text = written.replaceAll(/\b(from |import\()"(\.[^"]+)\.ts"/g, (_, before: string, path: string) => {
      files.add(`${join(dirname(file), path)}.d.ts`);
      return `${before}"${path}.js"`;
    });
    const target = join(directory, "types", file);
    mkdirSync(dirname(target), { recursive: true });
    writeFileSync(target, file.endsWith(`${name}/index.d.ts`) ? `${REFERENCES}${text}` : text);
  }
}

/** An import that is not found would be left for the consumer's Node to find. */
const refuse: NonNullable<RolldownOptions["onLog"]> = (level, log, handle) =>
  handle(log.code === "UNRESOLVED_IMPORT" ? "error" : level, log);

/** Collects the licences of what is bundled into DIR/THIRD-PARTY-LICENSES: most of them ask for that. */
function licences(directory: string): Plugin {
  return {
    name: "licences",
    writeBundle(_options, bundle) {
      const ids = Object.values(bundle).flatMap((file) => (file.type === "chunk" ? file.moduleIds : []));
      for (const id of ids) {
        const [root] = /^.*\/node_modules\/(?:@[^/]+\/)?[^/]+/.exec(id.replaceAll(sep, "/")) ?? [];
        if (root !== undefined) collected(directory).add(root);
      }
    },
  };
}

const found = new Map<string, Set<string>>();

function collected(directory: string): Set<string> {
  const roots = found.get(directory) ?? new Set();
  found.set(directory, roots);
  return roots;
}

/** The licences of all that was bundled into a package, as one text. */
export function licencesOf(directory: string): string {
  return [...collected(directory)]
    .toSorted()
    .map(licenceOf)
    .join(`\n${"-".repeat(80)}\n\n`);
}

function licenceOf(root: string): string {
  const { name, version, license } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
  const file = readdirSync(root).find((file) => /^(licen[cs]e|copying)/i.test(file));
  const text = file !== undefined && existsSync(join(root, file)) ? readFileSync(join(root, file), "utf8") : "";
  return `${name} ${version}, ${license}\n\n${text}`;
}
