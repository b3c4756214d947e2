import { readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { expect, it, onTestFinished } from "vitest";
import { isRoot } from "../../src/testing/root.ts";
import { RENEWABLE } from "../../src/worker/model/options.ts";
import type { Given } from "../line/program.ts";
import { allGiven, type Setting, wanted } from "./config.ts";
import { flags, settingsWithoutTls } from "./settings.ts";

const DOCS = join(import.meta.dirname, "../../docs");
const EXAMPLE = readFileSync(join(DOCS, "jobsd.toml"), "utf8");
const KEYS = flags.filter(({ once }) => !once);

/** Reads a file's lines as the daemon's configuration. */
async function read(toml: string): Promise<Given> {
  const dir = await mkdtemp(join(tmpdir(), "jobs-example-"));
  onTestFinished(() => rm(dir, { recursive: true }));
  const file = join(dir, "jobsd.toml");
  await writeFile(file, toml);
  const list = (flag: string): string[] => (flag === "config" ? [file] : []);
  const none = { command: "", operands: [], words: [], text: () => undefined, on: () => false, nameOf: String };
  return allGiven({ ...none, list, text: (flag) => list(flag).at(-1) }, {}, flags);
}

it("docs/configuration.md has a row for each key: its value, whether it needs a restart, and what --help says", () => {
  const page = readFileSync(join(DOCS, "configuration.md"), "utf8");
  const [, section = ""] = page.split("## Every key\n");
  const cells = section
    .split("\n")
    .filter((line) => line.startsWith("| `"))
    .map((line) => line.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|")));
  const row = ({ name, value, about, reloads, ...setting }: Setting): string[] => {
    const type = wanted({ name, value, about, ...setting } as Setting);
    return [`\`${name}\``, value === undefined ? type : `\`${value}\``, reloads ? "reload" : "restart", about];
  };
  expect(cells.map((each) => each.slice(1, -1))).toEqual(KEYS.map(row));
});

it("docs/jobsd.toml shows each key once, and says which need a restart", () => {
  const shown = [...EXAMPLE.matchAll(/^#?([a-z-]+) = /gm)].map(([, name = ""]) => name);
  expect(shown.toSorted()).toEqual(KEYS.map(({ name }) => name).toSorted());
  const paragraphs = EXAMPLE.split(/\n(?=# )/).slice(1);
  const wrong = KEYS.filter(({ name, reloads }) => {
    const paragraph = paragraphs.find((text) => new RegExp(`^#?${name} = `, "m").test(text)) ?? "";
    return /restart/.test(paragraph.split("\n## ")[0] ?? "") === (reloads === true);
  });
  expect(wrong.map(({ name }) => name)).toEqual([]);
});

it("docs/jobsd.toml is taken as it is, and with each key at work", async () => {
  const plain = await read(EXAMPLE);
  expect(KEYS.filter(({ name }) => plain.text(name)).map(({ name }) => name)).toEqual([
    "listen",
    "state",
    "ca",
    "cert",
    "key",
  ]);
  expect(settingsWithoutTls(plain, "/opt/jobs")).toMatchObject({ listen: { host: "0.0.0.0", port: 7443 } });
  // Only a worker that is root may let jobs make user namespaces.
  const rootless = isRoot
    ? EXAMPLE
    : EXAMPLE.replace("#allow-user-namespaces = true", "#allow-user-namespaces = false");
  const whole = await read(rootless.replaceAll(/^#(?=[a-z-]+ = )/gm, ""));
  expect(KEYS.filter(({ name }) => whole.text(name) === undefined)).toEqual([]);
  expect(settingsWithoutTls(whole, "/opt/jobs")).toMatchObject({ maxCalls: 4096, worker: { maxJobs: 10_000 } });
});

/** The settings that Served.renew takes beside the certificates, and the log's level. */
const OF_SERVER = ["auditLimits", "shutdownMs", "maxConnections", "maxCalls", "level"];

it("a key that a reload takes changes nothing but what the worker and the server take while they run", async () => {
  const plain = settingsWithoutTls(await read(EXAMPLE), "/opt/jobs");
  const wrong: string[] = [];
  for (const { name } of KEYS.filter(({ reloads }) => reloads)) {
    const toml = EXAMPLE.replace(new RegExp(`^#(?=${name} = )`, "m"), "");
    if (name === "allow-user-namespaces" && !isRoot) continue;
    const { worker, ...others } = settingsWithoutTls(await read(toml), "/opt/jobs");
    const differs = (before: object, now: object, may: readonly string[]): string[] =>
      [...new Set([...Object.keys(before), ...Object.keys(now)])].filter(
        (key) => !may.includes(key) && !isDeepStrictEqual(valueOf(before, key), valueOf(now, key)),
      );
    const { worker: before, ...rest } = plain;
    const found = [
      ...differs(before, { ...worker, sealed: before.sealed }, RENEWABLE),
      ...differs(rest, others, OF_SERVER),
    ];
    wrong.push(...found.map((key) => `${name} changes ${key}`));
  }
  expect(wrong).toEqual([]);
});

function valueOf(object: object, key: string): unknown {
  return Object.entries(object).find(([name]) => name === key)?.[1];
}
