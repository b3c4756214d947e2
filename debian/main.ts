import { execFileSync } from "node:child_process";
import { chmodSync, globSync, lstatSync, lutimesSync, mkdirSync, mkdtempDisposableSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import manifest from "../package.json" with { type: "json" };
import { architectureOf } from "./architecture.ts";
import { maintainer, type Package, packages, type Release, ROOT } from "./packages.ts";

/*
 * npm run deb -- [--out DIR] [--version VERSION] [--architecture amd64|arm64]: the Debian packages of this checkout as it is
 * built, in build/debian when no DIR is given, with package.json's version when none is given. The same sources make the same
 * bytes: times are SOURCE_DATE_EPOCH, or the last commit's.
 */
const text = { type: "string" } as const;
const { values } = parseArgs({ options: { out: text, version: text, architecture: text } });
const out = resolve(values.out ?? join(ROOT, "build/debian"));
mkdirSync(out, { recursive: true });
const release: Release = {
  // A pre-release sorts before its release: deb-version(7).
  version: values.version ?? manifest.version.replace("-", "~"),
  architecture: architectureOf(ROOT, out, values.architecture),
  date: new Date(Number(process.env["SOURCE_DATE_EPOCH"] ?? commitTime()) * 1000),
};
for (const each of packages(release)) process.stdout.write(`${build(each, release)}\n`);

function commitTime(): string {
  return execFileSync("git", ["log", "-1", "--format=%ct"], { cwd: ROOT, encoding: "utf8" }).trim();
}

/** Returns the package's file. */
function build({ name, files, scripts, ...rest }: Package, { version, architecture, date }: Release): string {
  using tree = mkdtempDisposableSync(join(tmpdir(), "jobs-deb-"));
  for (const [path, make] of Object.entries(files)) {
    mkdirSync(join(tree.path, dirname(path)), { recursive: true });
    make(join(tree.path, path));
  }
  const installed = globSync("**", { cwd: tree.path });
  const sizes = installed.map((path) => lstatSync(join(tree.path, path)).size);
  const control = [
    `Package: ${name}`,
    `Version: ${version}`,
    `Architecture: ${architecture.name}`,
    `Maintainer: ${maintainer}`,
    `Installed-Size: ${Math.ceil(sizes.reduce((sum, size) => sum + size, 0) / 1024)}`,
    `Depends: ${rest.depends}`,
    "Section: admin",
    "Priority: optional",
    `Description: ${rest.about[0]}`,
    ...rest.about.slice(1).map((line) => ` ${line}`),
  ];
  const debian = join(tree.path, "DEBIAN");
  mkdirSync(debian);
  writeFileSync(join(debian, "control"), `${control.join("\n")}\n`);
  const configuration = Object.keys(files).filter((path) => path.startsWith("etc/"));
  if (configuration.length > 0)
    writeFileSync(join(debian, "conffiles"), configuration.map((path) => `/${path}\n`).join(""));
  for (const [script, content] of Object.entries(scripts)) writeFileSync(join(debian, script), content);
  settle(tree.path, date);
  const file = join(out, `${name}_${version}_${architecture.name}.deb`);
  const env = { ...process.env, SOURCE_DATE_EPOCH: String(date.getTime() / 1000) };
  execFileSync(
    "dpkg-deb",
    ["--root-owner-group", "--no-uniform-compression", "-Zzstd", "-z9", "--build", tree.path, file],
    { env, stdio: "ignore" },
  );
  return file;
}

/** Gives all of a tree modes and times that tell nothing of this machine: a file is executable if it is a program. */
function settle(tree: string, date: Date): void {
  for (const path of globSync("**", { cwd: tree })) {
    const full = join(tree, path);
    const found = lstatSync(full);
    const runs = found.isDirectory() || /^(DEBIAN\/(post|pre)|usr\/lib\/jobs\/(bin|build)\/)/.test(path);
    if (!found.isSymbolicLink()) chmodSync(full, runs && !path.endsWith(".node") ? 0o755 : 0o644);
    lutimesSync(full, date, date);
  }
}
