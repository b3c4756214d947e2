import { mkdir, mkdtempDisposable } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type BuiltImage, buildImage, buildWithoutRegistry } from "./builder.ts";
import { openCache } from "./cache.ts";
import { docker, findDocker, describeImage } from "./docker.ts";
import { sharedLayers, withoutLayers } from "./layers.ts";
import { makeGuest, startMachine } from "./machine.ts";
import { installPrograms, obstacle, PATH } from "./packages.ts";
import { both, CommandError } from "./process.ts";
import { say, step } from "./steps.ts";

const TAG = "jobs:e2e";

/** A Docker engine with cgroup v2 and the daemon's image in it. */
export interface Engine extends AsyncDisposable {
  readonly host: string;
  readonly image: string;
}

/**
 * Takes the Docker engine that is there, or starts a virtual machine that is one, and builds the image of this checkout.
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
  const build = (signal: AbortSignal): Promise<BuiltImage> => buildWithoutRegistry(cache, TAG, signal);
  await using stack = new AsyncDisposableStack();
  if ("host" in found) {
    await load(found.host, await build(signal), signal);
    return { host: found.host, image: TAG, [Symbol.asyncDispose]: async () => {} };
  }
  const [guest, image] = await both(signal, (signal) => makeGuest(cache, signal), build);
  const { host } = stack.use(await startMachine(cache, guest, image, signal));
  await load(host, image, signal);
  const rest = stack.move();
  return { host, image: TAG, [Symbol.asyncDispose]: () => rest.disposeAsync() };
}

/** Puts the image into a virtual machine that has another one, without the layers that both have: the way is slow. */
async function load(host: string, { tag, archive, description }: BuiltImage, signal: AbortSignal): Promise<void> {
  const there = await describeImage(host, tag, signal);
  if (there === description) return;
  await step("image loaded", async () => {
    await using files = await mkdtempDisposable(join(tmpdir(), "jobs-image-"));
    await mkdir(join(files.path, "rest"));
    const rest = await withoutLayers(archive, sharedLayers(description, there), join(files.path, "rest"), signal);
    await docker(host, ["load", "--input", rest], { signal });
  });
}
