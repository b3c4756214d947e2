import { globSync, readFileSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Given } from "../line/program.ts";
import { parse } from "../line/program.ts";
import { allGiven, type Setting } from "./config.ts";
import { flags, settingsWithoutTls } from "./settings.ts";

let dir: string;
let file: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "jobs-config-"));
  file = join(dir, "jobsd.toml");
});
afterAll(() => rm(dir, { recursive: true }));

const KEYS = flags.filter(({ once }) => !once);

/** Returns what a command line, variables and a file's lines give together. */
async function given(toml: string, words: readonly string[] = [], env: NodeJS.ProcessEnv = {}): Promise<Given> {
  await writeFile(file, toml);
  const command = { name: "", about: [], flags, run: () => Promise.resolve(0) };
  const program = { name: "jobsd", version: "1", flags: [], commands: [command] };
  const parsed = parse(program, ["--config", file, ...words]);
  if (!parsed) throw new Error("it asked for help");
  return allGiven(parsed.given, env, flags);
}

const errorOf = (toml: string, words?: readonly string[]): Promise<unknown> =>
  given(toml, words)
    .then((all) => settingsWithoutTls(all, "/opt/jobs"))
    .then(
      () => "nothing is wrong",
      (error: unknown) => error,
    );

const variable = ({ name }: Setting): string => `JOBSD_${name.toUpperCase().replaceAll("-", "_")}`;

/** Three values of a flag, which its own parser need not take. */
function samples({ value, list }: Setting): { readonly toml: readonly string[]; readonly texts: readonly string[] } {
  if (value === undefined) return { toml: ["true", "false", "true"], texts: ["true", "false", "true"] };
  if (/^(N|SIZE)\b/.test(value)) return { toml: ["1", '"2"', "3"], texts: ["1", "2", "3"] };
  return { toml: [list ? '["/a", "/b"]' : '"/a"', '"/c"', '"/d"'], texts: [list ? "/a,/b" : "/a", "/c", "/d"] };
}

describe("each flag", () => {
  it.each(KEYS)("--$name is a key; a variable counts before that, and a flag before both", async (flag) => {
    const { toml, texts } = samples(flag);
    const [ofFile, ofVariable, ofFlag] = texts;
    const line = `${flag.name} = ${toml[0]}\n`;
    const env = { [variable(flag)]: ofVariable };
    const words = flag.value === undefined ? [`--${flag.name}=${ofFlag}`] : [`--${flag.name}`, ofFlag ?? ""];
    for (const [all, text, name] of [
      [await given(line), ofFile, `${file}:1: ${flag.name}`],
      [await given(line, [], env), ofVariable, variable(flag)],
      [await given(line, words, env), ofFlag, `--${flag.name}`],
      [await given("", words), ofFlag, `--${flag.name}`],
      [await given("", [], env), ofVariable, variable(flag)],
    ] as const) {
      expect({ text: all.list(flag.name).join(","), name: all.nameOf(flag.name) }).toEqual({ text, name });
      if (flag.value === undefined) expect(all.on(flag.name)).toBe(text === "true");
    }
    expect((await given("")).text(flag.name)).toBeUndefined();
  });

  it.each(KEYS)("--$name of a wrong type is refused with its line", async (flag) => {
    const wrong = flag.value === undefined ? '"yes"' : "true";
    const message = `${file}:3: ${flag.name} must be `;
    expect(await errorOf(`# one\n# two\n${flag.name} = ${wrong}\n`)).toMatchObject({
      name: "UsageError",
      message: expect.stringContaining(message),
    });
    for (const odd of ["1979-05-27", "1.5", "{ a = 1 }", "[[1]]"])
      expect(await errorOf(`\n\n${flag.name} = ${odd}`)).toMatchObject({ message: expect.stringContaining(message) });
  });
});

describe("a value that its flag would not take", () => {
  it.each([
    ['listen = "7443"', "listen", "7443"],
    ['log-limit = "lots"', "log-limit", "lots"],
    ["log-limit = 1000", "log-limit", "1000"],
    ['log-prune-age = "0"', "log-prune-age", "0"],
    ['log-prune-free = "100%"', "log-prune-free", "100%"],
    ["max-jobs = 0", "max-jobs", "0"],
    ["max-jobs = -5", "max-jobs", "-5"],
    ["max-calls = 1", "max-calls", "1"],
    ['isolation-off = ["pid", "user"]', "isolation-off", "pid,user"],
    ['archive = "ftp://logs"', "archive", "ftp://logs"],
    ['audit-limit = "1023K"', "audit-limit", "1023K"],
    ['log-level = "loud"', "log-level", "loud"],
    ['name = "Über"', "name", "Über"],
    ['allow-user = ["no such user"]', "allow-user", "no such user"],
    ['shutdown-timeout = "10"', "shutdown-timeout", "10"],
  ])("%s is refused in the flag's words, with file, line and key in the flag's place", async (toml, name, value) => {
    const [ofFile, ofFlag] = [await errorOf(`\n${toml}`), await errorOf("", [`--${name}=${value}`])];
    if (!(ofFile instanceof Error && ofFlag instanceof Error)) throw new Error("it was taken");
    expect(ofFlag.message).toMatch(new RegExp(`^--${name}\\b`));
    expect(ofFile.message).toBe(ofFlag.message.replace(`--${name}`, `${file}:2: ${name}`));
  });

  it.each([
    ['archive-region = "eu"', "archive-region is for an archive s3://BUCKET/PREFIX only"],
    ['log-keep = ""', "log-keep is empty; leave the key out where it is not to count"],
  ])("%s is refused", async (toml, message) => {
    expect(await errorOf(toml)).toMatchObject({ message: `${file}:1: ${message}` });
  });

  it("is named by no parser's caller as a flag: it may be a variable or a key", () => {
    const sources = globSync("*.ts", { cwd: import.meta.dirname }).filter((name) => !name.endsWith(".test.ts"));
    const naming = sources.filter((name) =>
      /\bparse\w*\(\s*["'`]--/.test(readFileSync(join(import.meta.dirname, name), "utf8")),
    );
    expect(naming).toEqual([]);
  });

  it("is not looked at where a flag counts before it", async () => {
    expect(await errorOf('log-limit = "lots"', ["--log-limit", "1M"])).toBe("nothing is wrong");
  });

  it("of a variable is refused by the variable's name, also where it is neither true nor false", async () => {
    const all = await given("allow-root = true", [], { JOBSD_ALLOW_ROOT: "maybe", JOBSD_MAX_JOBS: "none" });
    expect(() => all.on("allow-root")).toThrow('JOBSD_ALLOW_ROOT "maybe" is neither true nor false');
    const other = await given("", [], { JOBSD_MAX_JOBS: "none" });
    expect(() => settingsWithoutTls(other, "/opt/jobs")).toThrow(/^JOBSD_MAX_JOBS "none" is not a whole number/);
  });
});

describe("a file that is wrong", () => {
  it.each([
    ["zzz = 1\nlog_limit = 5", 1, "there is no key zzz; "],
    ['# x\nlog_limit = "1M"', 2, "there is no key log_limit, did you mean log-limit?"],
    ['[log]\nlimit = "1M"', 1, "there is no key log, "],
    ["listen = 0.0.0.0:7443", 1, "is not TOML, must be a newline: listen = 0.0.0.0:7443 (texts are in quotes"],
    ['\nstate = /var/lib/jobs\nlisten = "x"', 2, "is not TOML, unexpected character: state = /var/lib/jobs"],
    ['state = "/a"\n\nstate = "/b"', 3, "is not TOML, defining a key multiple times is invalid: state ="],
    ['state = "/a', 1, "is not TOML, unterminated string constant"],
    ["allow-user = [\n", 1, "is not TOML, "],
    ["check = true", 1, "check is no key: give --check on the command line"],
    ['config = "other.toml"', 1, "config is no key"],
    ["__proto__ = 1", 1, "there is no key __proto__"],
    ['"" = 1', 1, "there is no key "],
  ])("%j is refused with line %i", async (toml, line, message) => {
    expect(await errorOf(toml)).toMatchObject({
      name: "UsageError",
      message: expect.stringContaining(`${file}:${line}: ${message}`),
    });
  });

  it("is told of with all that is wrong with its keys", async () => {
    expect(await errorOf('lisen = "x"\nmax-jobs = true\nstate = "/a"\n[more]\n')).toMatchObject({
      message: expect.stringContaining(":1: there is no key lisen, did you mean listen?"),
      more: [
        expect.stringContaining(":2: max-jobs must be a number"),
        expect.stringContaining(":4: there is no key more"),
      ],
    });
  });

  it("is told of in few words, however much of it is wrong", async () => {
    const many = await errorOf(Array.from({ length: 1000 }, (_, i) => `zzz${i} = 1`).join("\n"));
    expect(many).toMatchObject({ message: expect.stringContaining(":1: "), more: expect.any(Array) });
    expect(many).toHaveProperty("more.length", 21);
    expect(many).toHaveProperty("more.20", "and 979 more");
    for (const toml of [`a${".a".repeat(50_000)} = 1`, `x = ${"[".repeat(20_000)}`, "x".repeat(100_000)]) {
      const error = await errorOf(toml);
      expect(error instanceof Error && error.message).toMatch(/^.{20,600}$/);
    }
    expect(await errorOf(`allow-user = ${"[".repeat(20_000)}${"]".repeat(20_000)}`)).toMatchObject({
      message: `${file}: is nested too deeply`,
    });
  });

  it.each([
    [Buffer.from("\ufeffx", "utf16le"), /jobsd\.toml: is UTF-16/],
    [Buffer.from([0x61, 0x80]), /jobsd\.toml: is not UTF-8/],
    [Buffer.alloc(2 * 1024 * 1024, "#"), /jobsd\.toml: is over/],
  ])("as bytes is refused", async (bytes, message) => {
    await writeFile(file, bytes);
    const lineOf = (path: string) => ({ list: (flag: string) => (flag === "config" ? [path] : []), nameOf: String });
    const all = (path: string) => allGiven({ ...lineOf(path) } as unknown as Given, {}, flags);
    await expect(all(file)).rejects.toThrow(message);
    await expect(all(join(dir, "none.toml"))).rejects.toThrow(/none\.toml: no such file or directory/);
    await mkdir(join(dir, "directory"), { recursive: true });
    await expect(all(join(dir, "directory"))).rejects.toThrow(/is a directory; a file is needed/);
  });
});

it("a byte order mark and a file of comments do no harm, and a relative path counts from the file's directory", async () => {
  const toml =
    '\ufeff# jobsd\nstate = "state"\nca = "../ca.crt"\narchive = "s3://logs/a"\nmetrics = "unix:m.sock"\nlisten = "[::1]:0"\r\n';
  const all = await given(toml);
  expect(["state", "ca", "archive", "metrics", "listen"].map((name) => all.text(name))).toEqual([
    join(dir, "state"),
    join(tmpdir(), "ca.crt"),
    "s3://logs/a",
    `unix:${join(dir, "m.sock")}`,
    "[::1]:0",
  ]);
  expect((await given("# nothing\n")).text("state")).toBeUndefined();
});
