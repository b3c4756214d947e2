import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

/** The checkout. In npm's package, whose libraries stand as deep in it as this file does here, the package. */
const ROOT = join(import.meta.dirname, "../..");

/**
 * The directory of what is built from C, the supervisor, verify.node and notify.node: build/ of a checkout or an image, or else npm's
 * package for this machine. Where neither is there it is build/, for whoever looks for a file of it to say so.
 *
 * @param root the directory that holds build/
 */
export function nativeDirectory(root = ROOT): string {
  const built = join(root, "build");
  if (existsSync(built)) return built;
  try {
    return dirname(createRequire(import.meta.url).resolve(`jobsd-linux-${process.arch}/package.json`));
  } catch {
    return built;
  }
}
