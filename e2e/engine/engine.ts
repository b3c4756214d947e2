import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { buildImage, buildWithoutRegistry } from "./builder.ts";
import { type Cache, openCache } from "./cache.ts";
import { docker, findDocker, imageId } from "./docker.ts";
import { bootMachine, makeGuest } from "./machine.ts";
import { installPrograms, obstacle, PATH } from "./packages.ts";
import { CommandError, both } from "./process.ts";
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
  const why = obstacle();
  if ("reason" in found) {
    if (why) throw new CommandError(`the tests need a Docker engine with cgroup v2: ${found.reason}, and ${why}`, "");
    say(`${found.reason}; booting a virtual machine with one`);
  }
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
  const image = await buildWithoutRegistry(cache, TAG, signal);
  const id = await readFile(join(image, "id"), "utf8");
  if ((await imageId(host, TAG, signal)) !== id)
    await step("image loaded", () => docker(host, ["load", "--input", join(image, "image.tar")], { signal }));
  return { host, image: TAG, [Symbol.asyncDispose]: async () => {} };
}
