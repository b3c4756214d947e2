import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { docker } from "./docker.ts";

/** On the volumes of a run: the name of its image. */
const VOLUME_LABEL = "jobs.e2e.image";

/** The environment of one run of the suites. Disposing removes what an interrupted one has left, and the image's name. */
export interface Place extends AsyncDisposable {
  readonly env: NodeJS.ProcessEnv;
}

/** @param image a name that no other run has: what is left is found by it */
export async function openPlace(host: string, image: string): Promise<Place> {
  const temporary = await mkdtemp(join(tmpdir(), "jobs-e2e-run-"));
  return {
    // The reaper's image cannot be pulled everywhere, and is not needed.
    env: { ...process.env, ...environment(host, image), TMPDIR: temporary },
    async [Symbol.asyncDispose]() {
      await rm(temporary, { recursive: true, force: true });
      await clear(host, image);
    },
  };
}

/** What the suites need to know of the engine. */
export function environment(host: string, image: string): Record<string, string> {
  return { DOCKER_HOST: host, TESTCONTAINERS_RYUK_DISABLED: "true", JOBS_E2E_IMAGE: image };
}

async function clear(host: string, image: string): Promise<void> {
  const options = { signal: AbortSignal.timeout(60_000) };
  // A filter by ancestor would find other names of the same image.
  const containers = await docker(host, ["ps", "--all", "--format", "{{.ID}} {{.Image}}"], options);
  const left = containers.split("\n").flatMap((line) => (line.endsWith(` ${image}`) ? [line.split(" ")[0] ?? ""] : []));
  if (left.length > 0) await docker(host, ["rm", "--force", "--volumes", ...left], options);
  const volumes = await docker(
    host,
    ["volume", "ls", "--quiet", "--filter", `label=${VOLUME_LABEL}=${image}`],
    options,
  );
  if (volumes) await docker(host, ["volume", "rm", "--force", ...volumes.split("\n")], options);
  await docker(host, ["rmi", image], options);
}
