import { constants } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { docker } from "./engine/docker.ts";
import { type Engine, openEngine } from "./engine/engine.ts";
import { environment, openPlace } from "./engine/place.ts";
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
  // More than once: npm hands on a signal that the terminal has sent here too, and the second must not cut the first short.
  for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
    process.on(name, () => interrupted.abort(new Interrupted(name)));
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

/** Runs the suites on an image name of this run, by which what they leave behind is found. */
async function test({ host, image }: Engine, args: readonly string[], signal: AbortSignal): Promise<number> {
  const name = `${image}-${process.pid}`;
  await docker(host, ["tag", image, name], { signal });
  await using place = await openPlace(host, name);
  const vitest = join(ROOT, "node_modules/vitest/vitest.mjs");
  return await runVisibly(process.execPath, [vitest, "run", "--config", "e2e/vitest.config.ts", ...args], {
    signal,
    cwd: ROOT,
    env: place.env,
  });
}
