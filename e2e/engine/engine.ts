import { copyFile, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { buildImage, buildWithoutRegistry } from "./builder.ts";
import { type Cache, openCache } from "./cache.ts";
import { docker, findDocker, describeImage } from "./docker.ts";
import { bootMachine, makeGuest } from "./machine.ts";
import { installPrograms, obstacle, PATH } from "./packages.ts";
import { both, CommandError, run } from "./process.ts";
import { say, step } from "./steps.ts";

const TAG = "jobs:e2e";

/** A Docker engine with cgroup v2 and the daemon's image in it. */
export interface Engine extends AsyncDisposable {
  readonly host: string;
  readonly image: string;
}

/**
 * Takes the Docker engine that is there, or boots a virtual machine that is one, and builds the image of this checkout.
 * When it is disposed of, what it started is gone.
 *
 * @throws CommandError with what is missing when there is no engine and the machine cannot be had
 */
export async function openEngine(signal: AbortSignal): Promise<Engine> {
  const found = await findDocker(signal);
  if ("host" in found && !found.isMachine) {
    await buildImage(found.host, TAG, signal);
    return { host: found.host, image: TAG, [Symbol.asyncDispose]: async () => {} };
  }
  const reason = "reason" in found ? found.reason : `${found.host} is a virtual machine of another run`;
  const why = obstacle();
  if (why) throw new CommandError(`no Docker engine with cgroup v2 (${reason}), and no machine of our own: ${why}`);
  if ("reason" in found) say(`no Docker engine with cgroup v2 (${reason}): a virtual machine will be one`);
  process.env["PATH"] = PATH;
  await installPrograms(signal);
  await using cache = await openCache(signal);
  if ("host" in found) return await loadInto(found.host, cache, signal);
  const [guest, image] = await both(
    signal,
    (signal) => makeGuest(cache, signal),
    (signal) => buildWithoutRegistry(cache, TAG, signal),
  );
  const { host, [Symbol.asyncDispose]: dispose } = await bootMachine(guest, join(image, "docker.img"), signal);
  return { host, image: TAG, [Symbol.asyncDispose]: dispose };
}

/** The virtual machine of another run, which only gets the image, and only when it has another one. */
async function loadInto(host: string, cache: Cache, signal: AbortSignal): Promise<Engine> {
  const built = await buildWithoutRegistry(cache, TAG, signal);
  const here = await readFile(join(built, "image"), "utf8");
  const there = await describeImage(host, TAG, signal);
  if (here !== there) await step("image loaded", () => load(host, join(built, "image.tar"), sharedLayers(here, there)));
  return { host, image: TAG, [Symbol.asyncDispose]: async () => {} };

  /** Without the first `known` layers, which Docker does not read when it has them; the way into the machine is slow. */
  async function load(host: string, archive: string, known: number): Promise<void> {
    const copy = `${archive}.part`;
    await copyFile(archive, copy);
    try {
      const manifest = await run("tar", ["-xOf", archive, "manifest.json"], { signal });
      const paths = manifest.match(/[0-9a-f]{64}\/layer\.tar/g)?.slice(0, known) ?? [];
      if (paths.length > 0) await run("tar", ["--delete", "-f", copy, ...paths], { signal });
      await docker(host, ["load", "--input", copy], { signal });
    } finally {
      await rm(copy);
    }
  }
}

/** How many layers two images have in common, from the first on; as describeImage has them. */
function sharedLayers(one: string, other = ""): number {
  const [layers, others] = [one.split(" ").slice(1), other.split(" ").slice(1)];
  const differing = layers.findIndex((layer, i) => layer !== others[i]);
  return differing === -1 ? layers.length : differing;
}
