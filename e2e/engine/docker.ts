import { CommandError, run, type RunOptions } from "./process.ts";

/** A Docker engine that can be asked, and whether it is the virtual machine of another run (machine.ts). */
export interface Docker {
  readonly host: string;
  readonly isMachine: boolean;
}

/** The label of an engine in a virtual machine, which cannot build images itself. */
const MACHINE_LABEL = "jobs.e2e.machine";

/** Runs `docker ARGS` against the engine at `host`, such as `unix:///run/docker.sock`. */
export function docker(host: string, args: readonly string[], options: RunOptions): Promise<string> {
  return run("docker", args, { ...options, env: { ...process.env, ...options.env, DOCKER_HOST: host } });
}

/** The engine that DOCKER_HOST or the current context names, when limits can be tested on it; else why not. */
export async function findDocker(signal: AbortSignal): Promise<Docker | { readonly reason: string }> {
  const limited = AbortSignal.any([signal, AbortSignal.timeout(20_000)]);
  try {
    const host =
      process.env["DOCKER_HOST"] ||
      (await run("docker", ["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"], { signal: limited }));
    const format = "{{.CgroupVersion}} {{range .Labels}}{{.}} {{end}}{{range .ServerErrors}}{{.}}{{end}}";
    const [version, ...labels] = (await docker(host, ["info", "--format", format], { signal: limited })).split(" ");
    if (version === "2") return { host, isMachine: labels.some((label) => label.startsWith(`${MACHINE_LABEL}=`)) };
    return { reason: version === "1" ? `the engine at ${host} has cgroup v1` : `no Docker engine answers at ${host}` };
  } catch (error) {
    signal.throwIfAborted();
    const message = error instanceof Error ? error.message : String(error);
    if (message.endsWith("ENOENT")) return { reason: "docker is not installed" };
    const said = error instanceof CommandError ? error.output.trim().split("\n").at(-1) : "";
    return { reason: said || message };
  }
}

/** An image's id and its layers, the first one first; undefined when the engine does not have it. */
export async function describeImage(host: string, tag: string, signal: AbortSignal): Promise<string | undefined> {
  try {
    return await docker(host, ["image", "inspect", "--format", "{{.Id}}{{range .RootFS.Layers}} {{.}}{{end}}", tag], {
      signal,
    });
  } catch (error) {
    if (error instanceof CommandError && /no such image/i.test(error.output)) return undefined;
    throw error;
  }
}
