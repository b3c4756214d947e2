import { constants } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { docker } from "./engine/docker.ts";
import { type Engine, openEngine } from "./engine/engine.ts";
import { both, CommandError, run, runVisibly } from "./engine/process.ts";
import { say, step } from "./engine/steps.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

class Interrupted extends Error {
  readonly exitCode: number;
  constructor(signal: "SIGINT" | "SIGTERM" | "SIGHUP") {
    super(signal);
    this.exitCode = 128 + constants.signals[signal];
  }
}

process.exitCode = await main(process.argv.slice(2));

/**
 * `npm run e2e -- [--engine-only | NAME… and vitest's flags]`. Resolves to the exit code: that of the tests, 1 when
 * there is nothing to run them on, 128 and the signal's number when it was interrupted.
 */
async function main(args: readonly string[]): Promise<number> {
  const interrupted = new AbortController();
  for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
    process.once(name, () => interrupted.abort(new Interrupted(name)));
  const { signal } = interrupted;
  try {
    if (args.includes("--engine-only")) {
      await using engine = await openEngine(signal);
      return await stayUp(engine, signal);
    }
    await using stack = new AsyncDisposableStack();
    const [engine] = await both(signal, async (signal) => stack.use(await openEngine(signal)), build);
    return await test(engine, args, signal);
  } catch (error) {
    if (error instanceof Interrupted) return error.exitCode;
    if (!(error instanceof CommandError)) throw error;
    say(error.message);
    return 1;
  }
}

/** The suites run the CLI as it is built. */
function build(signal: AbortSignal): Promise<string> {
  return step("CLI built", () => run("sh", ["scripts/build"], { signal, cwd: ROOT }));
}

/** For developing suites: vitest is run beside it, with this environment. */
async function stayUp({ host, image }: Engine, signal: AbortSignal): Promise<never> {
  const variables = Object.entries(environment(host, image)).map(([name, value]) => `${name}=${value}`);
  process.stdout.write(`export ${variables.join(" ")}\n`);
  say("the engine stays up until Ctrl-C; npm run e2e where these variables are set uses it, with the image made anew");
  // A timer, since a promise alone keeps no process.
  const alive = setInterval(() => {}, 2 ** 30);
  return new Promise((_, reject) =>
    signal.addEventListener("abort", () => {
      clearInterval(alive);
      reject(signal.reason);
    }),
  );
}

/** Runs the suites on containers of an image name of this run, by which what they leave behind is found. */
async function test({ host, image }: Engine, args: readonly string[], signal: AbortSignal): Promise<number> {
  const name = `${image}-${process.pid}`;
  await docker(host, ["tag", image, name], { signal });
  const vitest = join(ROOT, "node_modules/vitest/vitest.mjs");
  try {
    return await runVisibly(process.execPath, [vitest, "run", "--config", "e2e/vitest.config.ts", ...args], {
      signal,
      cwd: ROOT,
      env: { ...process.env, ...environment(host, name) },
    });
  } finally {
    await clear(host, name);
  }
}

async function clear(host: string, image: string): Promise<void> {
  const options = { signal: AbortSignal.timeout(60_000) };
  const all = await docker(host, ["ps", "--all", "--format", "{{.ID}} {{.Image}}"], options);
  const left = all.split("\n").flatMap((line) => (line.endsWith(` ${image}`) ? [line.split(" ")[0] ?? ""] : []));
  if (left.length > 0) await docker(host, ["rm", "--force", "--volumes", ...left], options);
  await docker(host, ["rmi", image], options);
}

function environment(host: string, image: string): Record<string, string> {
  // The reaper's image cannot be pulled everywhere, and is not needed: the run clears up itself.
  return { DOCKER_HOST: host, TESTCONTAINERS_RYUK_DISABLED: "true", JOBS_E2E_IMAGE: image };
}
