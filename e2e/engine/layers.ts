import { run } from "./process.ts";

/** How many layers two images have in common, from the first on; each as describeImage has it. */
export function sharedLayers(one: string, other = ""): number {
  const [layers, others] = [one.split(" ").slice(1), other.split(" ").slice(1)];
  const differing = layers.findIndex((layer, i) => layer !== others[i]);
  return differing === -1 ? layers.length : differing;
}

/**
 * Writes what `docker save` wrote once more, as DIRECTORY.tar, without the content of the first `known` layers: Docker
 * does not read that of layers which it has. `tar --delete` is no way to it: it loses the end of such an archive.
 */
export async function withoutLayers(
  archive: string,
  known: number,
  directory: string,
  signal: AbortSignal,
): Promise<string> {
  const manifest = await run("tar", ["-xOf", archive, "manifest.json"], { signal });
  const paths = manifest.match(/[0-9a-f]{64}\/layer\.tar/g)?.slice(0, known) ?? [];
  await run("tar", ["-xf", archive, "-C", directory, ...paths.map((path) => `--exclude=${path}`)], { signal });
  const rest = `${directory}.tar`;
  await run("tar", ["-cf", rest, "-C", directory, "."], { signal });
  return rest;
}
