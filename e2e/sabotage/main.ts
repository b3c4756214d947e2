import { cp, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { docker } from "../engine/docker.ts";
import { openEngine } from "../engine/engine.ts";
import { CommandError, run } from "../engine/process.ts";

// Breaks one promise after another in a copy of the checkout, and sees whether the suite that guards it fails.

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const PATCHES = fileURLToPath(new URL(".", import.meta.url));

interface Sabotage {
  readonly name: string;
  readonly file: string;
  /** The suite that must fail. */
  readonly suite: string;
  /** What it breaks. */
  readonly what: string;
}

interface Engine {
  readonly host: string;
  readonly image: string;
}

interface Verdict {
  readonly noticed: boolean;
  /** The test that failed, or why nothing was learnt. */
  readonly by: string;
}

/** What vitest's JSON reporter writes, as far as it is looked at. */
interface Report {
  readonly testResults: readonly { readonly message: string; readonly assertionResults: readonly TestResult[] }[];
}

interface TestResult {
  readonly fullName: string;
  readonly status: string;
  readonly failureMessages: readonly string[];
}

const interrupted = new AbortController();
for (const name of ["SIGINT", "SIGTERM"] as const) process.once(name, () => interrupted.abort());
const { signal } = interrupted;
process.exitCode = await main(process.argv.slice(2));

/** `node e2e/sabotage/main.ts [NAME…]`. Resolves to the exit code: 1 when a sabotage went unnoticed. */
async function main(names: readonly string[]): Promise<number> {
  try {
    const all = await sabotages(names);
    await using made = new AsyncDisposableStack();
    const engine = await engineOf(made);
    const copy = await copyCheckout(made);
    let unnoticed = 0;
    for (const sabotage of all) {
      const began = performance.now();
      const { noticed, by } = await attempt(sabotage, copy, engine);
      if (!noticed) unnoticed++;
      const took = `${((performance.now() - began) / 1000).toFixed(0)} s`;
      const { name, suite, what } = sabotage;
      process.stdout.write(`${noticed ? "noticed" : "UNNOTICED"}  ${name}: ${what}\n  ${took}, ${suite}: ${by}\n`);
    }
    process.stdout.write(`${all.length - unnoticed} noticed, ${unnoticed} unnoticed\n`);
    return unnoticed > 0 ? 1 : 0;
  } catch (error) {
    if (signal.aborted) return 130;
    if (!(error instanceof CommandError)) throw error;
    process.stderr.write(`sabotage: ${error.message}\n`);
    return 1;
  }
}

/** Each patch begins with a line "SUITE: what it breaks". */
async function sabotages(names: readonly string[]): Promise<Sabotage[]> {
  const files = (await readdir(PATCHES)).filter((file) => file.endsWith(".patch")).toSorted();
  const all = await Promise.all(
    files.map(async (entry) => {
      const file = join(PATCHES, entry);
      const [, suite = "", what = ""] = /^(\w+): (.+)\n/.exec(await readFile(file, "utf8")) ?? [];
      if (!suite) throw new CommandError(`${file}: its first line must be "SUITE: what it breaks"`, "");
      return { name: basename(entry, ".patch"), file, suite, what };
    }),
  );
  const unknown = names.find((name) => !all.some((one) => one.name === name));
  if (unknown !== undefined) throw new CommandError(`there is no ${unknown}.patch`, "");
  return names.length > 0 ? all.filter(({ name }) => names.includes(name)) : all;
}

/** The engine and image that `npm run e2e -- --engine-only` names in the environment, or those of this run. */
async function engineOf(made: AsyncDisposableStack): Promise<Engine> {
  const { DOCKER_HOST: host, JOBS_E2E_IMAGE: image } = process.env;
  return host && image ? { host, image } : made.use(await openEngine(signal));
}

/** A clone of what is committed, with this checkout's node_modules. */
async function copyCheckout(made: AsyncDisposableStack): Promise<string> {
  const copy = await mkdtemp(join(tmpdir(), "jobs-sabotage-"));
  made.defer(() => rm(copy, { recursive: true, force: true }));
  await run("git", ["clone", "--quiet", ROOT, copy], { signal });
  await symlink(join(ROOT, "node_modules"), join(copy, "node_modules"));
  return copy;
}

async function attempt({ name, file, suite }: Sabotage, copy: string, engine: Engine): Promise<Verdict> {
  const here = { signal, cwd: copy };
  await run("git", ["checkout", "--quiet", "--", "."], here);
  try {
    await run("git", ["apply", file], here);
    await run("sh", ["scripts/build"], here);
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    return { noticed: false, by: `there is nothing to run: ${error.message}` };
  }
  const image = `jobs:sabotage-${name}-${process.pid}`;
  await using cleared = new AsyncDisposableStack();
  await derive(image, copy, engine);
  cleared.defer(() => clear(image, engine));
  return await judge(suite, copy, { host: engine.host, image });
}

/** An image with what the copy has built over the good image: to build it whole would take a minute each time. */
async function derive(tag: string, copy: string, { host, image }: Engine): Promise<void> {
  const context = join(copy, "build", "image");
  await mkdir(context, { recursive: true });
  await cp(join(copy, "dist"), join(context, "dist"), { recursive: true });
  await cp(join(copy, "build", "supervisor"), join(context, "supervisor"));
  const lines = [`FROM ${image}`, "COPY dist /opt/jobs/dist", "COPY supervisor /opt/jobs/build/supervisor"];
  await writeFile(join(context, "Dockerfile"), `${lines.join("\n")}\n`);
  // BuildKit needs a plugin of the command line that not every Docker has.
  await docker(host, ["build", "--quiet", "--tag", tag, context], { signal, env: { DOCKER_BUILDKIT: "0" } });
  await rm(context, { recursive: true });
}

/** An interrupted suite leaves its containers. */
async function clear(image: string, { host }: Engine): Promise<void> {
  const options = { signal: AbortSignal.timeout(60_000) };
  const left = await docker(host, ["ps", "--all", "--quiet", "--filter", `ancestor=${image}`], options);
  if (left) await docker(host, ["rm", "--force", "--volumes", ...left.split("\n")], options);
  await docker(host, ["rmi", "--force", image], options);
}

/** Noticed is only what an assertion failed for: that a container did not start, or a file did not load, proves nothing. */
async function judge(suite: string, copy: string, { host, image }: Engine): Promise<Verdict> {
  const report = join(copy, "build", "report.json");
  await rm(report, { force: true });
  const vitest = join(copy, "node_modules/vitest/vitest.mjs");
  const flags = ["--config", "e2e/vitest.config.ts", "--bail=1", "--reporter=json", `--outputFile=${report}`];
  const env = { ...process.env, DOCKER_HOST: host, TESTCONTAINERS_RYUK_DISABLED: "true", JOBS_E2E_IMAGE: image };
  try {
    await run(process.execPath, [vitest, "run", ...flags, `e2e/${suite}.test.ts`], { signal, cwd: copy, env });
    return { noticed: false, by: "all tests passed" };
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    const told = await readFile(report, "utf8").catch(() => undefined);
    return told === undefined
      ? { noticed: false, by: `it could not be run: ${error.message}` }
      : verdictOf(JSON.parse(told));
  }
}

function verdictOf({ testResults }: Report): Verdict {
  const tests = testResults.flatMap(({ assertionResults }) => assertionResults);
  const failed = tests.filter(({ status }) => status === "failed");
  const asserted = failed.find(({ failureMessages }) =>
    failureMessages.some((text) => text.startsWith("AssertionError")),
  );
  if (asserted) return { noticed: true, by: asserted.fullName };
  const messages = [
    ...failed.flatMap(({ failureMessages }) => failureMessages),
    ...testResults.map(({ message }) => message),
  ];
  const why = messages.find((message) => message !== "") ?? "no test was run";
  return { noticed: false, by: `failed by no assertion: ${why}` };
}
