import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import manifest from "../package.json" with { type: "json" };

/** An architecture in Debian's words, and what is built for it. */
export interface Architecture {
  readonly name: "amd64" | "arm64";
  /** Node's program, with its symbols. */
  readonly node: string;
  /** The directory of what is in C. */
  readonly native: string;
  /** The program that removes symbols. */
  readonly strip: string;
}

/** By the names that Node has for them. */
const TRIPLETS = { x64: "x86_64-linux-gnu", arm64: "aarch64-linux-gnu" } as const;
const DEBIAN = { x64: "amd64", arm64: "arm64" } as const;

/**
 * Returns what there is for an architecture: this machine's is in the checkout `root`; another one's is made in `out`, by
 * Debian's cross compiler and with the Node of npm's package. Throws with what is missing.
 *
 * @param wanted in Debian's words; this machine's when undefined
 */
export function architectureOf(root: string, out: string, wanted: string | undefined): Architecture {
  const own = process.arch === "arm64" ? "arm64" : "x64";
  const known = (["x64", "arm64"] as const).find((each) => DEBIAN[each] === (wanted ?? DEBIAN[own]));
  if (known === undefined) throw new Error(`no architecture ${String(wanted)}: give amd64 or arm64`);
  const packaged = `node-linux-${known}` as const;
  if (known === own) {
    const node = join(root, "node_modules", packaged, "bin/node");
    return { name: DEBIAN[known], node, native: join(root, "build"), strip: "strip" };
  }
  const triplet = TRIPLETS[known];
  if (spawnSync(`${triplet}-gcc`, ["--version"]).status !== 0)
    throw new Error(`${triplet}-gcc is not here. On Debian: apt-get install gcc-${triplet.replace("_", "-")}`);
  const made = join(out, `${DEBIAN[known]}.made`);
  mkdirSync(made, { recursive: true });
  const settings = [`OUT=${made}`, `CC=${triplet}-gcc`, "STATIC=-static"];
  execFileSync("make", ["--silent", "--directory", join(root, "src/supervisor"), ...settings], { stdio: "inherit" });
  const version = `${packaged}@${manifest.optionalDependencies[packaged]}`;
  const packed = ["pack", "--silent", "--pack-destination", made, version];
  const tarball = execFileSync("npm", packed, { cwd: root, encoding: "utf8" }).trim();
  execFileSync("tar", ["-xf", join(made, tarball), "-C", made, "package/bin/node"]);
  return { name: DEBIAN[known], node: join(made, "package/bin/node"), native: made, strip: `${triplet}-strip` };
}
