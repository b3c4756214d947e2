import { cp, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { docker } from "../engine/docker.ts";
import { openEngine } from "../engine/engine.ts";
import { openPlace } from "../engine/place.ts";
import { CommandError, run } from "../engine/process.ts";
import { type Verdict, verdictOf } from "./verdict.ts";

// Breaks one promise after another in a copy of the checkout, and sees whether the suite that guards it fails.

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
/** The suite that is no file of e2e/; "noticed by" is then a regular expression for what it complains of. */
const FAULTS = "faults";
const PATCHES = fileURLToPath(new URL(".", import.meta.url));

interface Sabotage {
  readonly name: string;
  readonly file: string;
  /** The suite that must fail: one of e2e/ by its name, one that needs no Docker by its path, or FAULTS. */
  readonly suite: string;
  /** The tests of it: a part of their names. */
  readonly tests: string;
  /** What it breaks. */
  readonly what: string;
}

interface Engine {
  readonly host: string;
  readonly image: string;
}

const interrupted = new AbortController();
// More than once: npm hands on a signal that the terminal has sent here too.
for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(name, () => interrupted.abort());
const { signal } = interrupted;
process.exitCode = await main(process.argv.slice(2));

/** `node e2e/sabotage/main.ts [NAME…]`. Resolves to the exit code: 1 when a sabotage went unnoticed. */
async function main(names: readonly string[]): Promise<number> {
  try {
    const all = await sabotages(names);
    await using made = new AsyncDisposableStack();
    const engine = all.some(({ suite }) => needsDocker(suite)) ? await engineOf(made) : undefined;
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

function needsDocker(suite: string): boolean {
  return suite !== FAULTS && !suite.includes("/");
}

/** Each patch begins with a line "SUITE: what it breaks" and a line "noticed by: a part of the names of its tests". */
async function sabotages(names: readonly string[]): Promise<Sabotage[]> {
  const files = (await readdir(PATCHES)).filter((file) => file.endsWith(".patch")).toSorted();
  const all = await Promise.all(
    files.map(async (entry) => {
      const file = join(PATCHES, entry);
      const head = /^([\w/.-]+): (.+)\nnoticed by: (.+)\n/.exec(await readFile(file, "utf8"));
      if (!head) throw new CommandError(`${file}: must begin with "SUITE: what it breaks" and "noticed by: TESTS"`, "");
      const [, suite = "", what = "", tests = ""] = head;
      return { name: basename(entry, ".patch"), file, suite, tests, what };
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

async function attempt(
  { name, file, suite, tests }: Sabotage,
  copy: string,
  engine: Engine | undefined,
): Promise<Verdict> {
  const here = { signal, cwd: copy };
  await run("git", ["checkout", "--quiet", "--", "."], here);
  try {
    await run("git", ["apply", file], here);
    await run("sh", ["scripts/build"], here);
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    return { noticed: false, by: `there is nothing to run: ${error.message}` };
  }
  if (suite === FAULTS) return await judgeFaults(tests, copy);
  if (engine === undefined || !needsDocker(suite)) return await judge(suite, tests, copy, process.env);
  const image = `jobs:sabotage-${name}-${process.pid}`;
  await derive(image, copy, engine);
  await using place = await openPlace(engine.host, image);
  return await judge(`e2e/${suite}.test.ts`, tests, copy, place.env, ["--config", "e2e/vitest.config.ts"]);
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

async function judge(
  file: string,
  tests: string,
  copy: string,
  env: NodeJS.ProcessEnv,
  config: readonly string[] = [],
): Promise<Verdict> {
  const report = join(copy, "build", "report.json");
  await rm(report, { force: true });
  const vitest = join(copy, "node_modules/vitest/vitest.mjs");
  const what = [file, "--testNamePattern", RegExp.escape(tests), "--bail=1"];
  const how = [...config, "--reporter=json", `--outputFile=${report}`];
  const ran = run(process.execPath, [vitest, "run", ...what, ...how], { signal, cwd: copy, env });
  const error = await ran.then(
    () => undefined,
    (failure: unknown) => failure,
  );
  if (error !== undefined && !(error instanceof CommandError)) throw error;
  const told = await readFile(report, "utf8").catch(() => undefined);
  return told === undefined
    ? { noticed: false, by: `could not be run: ${error?.message}` }
    : verdictOf(JSON.parse(told), tests);
}

/** As `npm run test:faults` does it, with more kills, and no time spent on a shorter sequence. */
async function judgeFaults(complaint: string, copy: string): Promise<Verdict> {
  const env = { ...process.env, FAULTS_OPERATIONS: "4000", FAULTS_KILLS: "200", FAULTS_SHRINK_S: "0" };
  try {
    await run(process.execPath, [join(copy, "faults/main.ts")], { signal, cwd: copy, env });
    return { noticed: false, by: "nothing was complained of" };
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    const told = /^FAILED .*$/m.exec(error.output)?.[0];
    if (told === undefined) return { noticed: false, by: `could not be run: ${error.message}` };
    return { noticed: new RegExp(complaint).test(told), by: told };
  }
}
