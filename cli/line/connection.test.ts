import { chmod, mkdir, mkdtemp, mkdtempDisposable, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeAll, describe, expect, it } from "vitest";
import { readPrivate } from "../../src/x509/file.ts";
import { findConnection, readCredentials, SettingError } from "./connection.ts";
import { UsageError } from "./parse.ts";

let home: string;
let file: string;
beforeAll(async () => {
  const made = await mkdtempDisposable(join(tmpdir(), "jobs-connection-"));
  home = made.path;
  await mkdir(join(home, "jobs"));
  file = join(home, "jobs", "config.json");
  const lab = { server: "lab:1", ca: "lab.ca", cert: "/etc/lab.crt", key: "lab.key" };
  await writeFile(
    file,
    JSON.stringify({ current: "lab", contexts: { lab, half: { server: "half:1" }, bad: { server: 7 } } }),
  );
  return () => made.remove();
});

const all = { JOBS_SERVER: "env:1", JOBS_CA: "env.ca", JOBS_CERT: "env.crt", JOBS_KEY: "env.key" };

function find(flags: Readonly<Record<string, string>>, env: NodeJS.ProcessEnv) {
  return findConnection({ text: (name) => flags[name] }, { XDG_CONFIG_HOME: home, ...env });
}

describe("the connection", () => {
  const identity = { flags: "flag", env: "env", lab: "/etc/lab" } as const;
  const own = { server: "flag:1", ca: "f", cert: "flag.crt", key: "flag.key" };

  it.each<[string, Record<string, string>, NodeJS.ProcessEnv, string, keyof typeof identity]>([
    ["the command line over the environment", own, all, "flag:1", "flags"],
    ["the command line over a context that the environment names", own, { JOBS_CONTEXT: "nope" }, "flag:1", "flags"],
    ["the command line over the current context", own, {}, "flag:1", "flags"],
    ["the environment over the current context", {}, all, "env:1", "env"],
    ["the current context where the environment says nothing", {}, { JOBS_CERT: "" }, "lab:1", "lab"],
    ["a context by flag over the environment", { context: "lab" }, all, "lab:1", "lab"],
    ["a context by flag over one by environment", { context: "lab" }, { JOBS_CONTEXT: "nope" }, "lab:1", "lab"],
    ["a context by environment over the current one", {}, { JOBS_CONTEXT: "lab" }, "lab:1", "lab"],
  ])("takes %s", async (_, flags, env, server, who) => {
    expect(await find(flags, env)).toMatchObject({ server, cert: `${identity[who]}.crt` });
  });

  const pair = { cert: "flag.crt", key: "flag.key" };
  it.each<[string, Record<string, string>, NodeJS.ProcessEnv, string]>([
    ["a context that is not there, with the environment's parts", { context: "nope" }, all, 'no context "nope"'],
    ["a context that is not there, by the environment", {}, { JOBS_CONTEXT: "nope" }, 'no context "nope"'],
    [
      "a server by flag with the environment's certificates",
      { server: "flag:1" },
      all,
      "no ca, cert, key: the command line gives server alone, and is not mixed with JOBS_CA, JOBS_CERT, JOBS_KEY, " +
        "the file's current context lab; give all four in one place",
    ],
    [
      "a certificate and key by flags with the environment's server",
      pair,
      { ...all, XDG_CONFIG_HOME: "/nonexistent" },
      "no server, ca: the command line gives cert, key alone, and is not mixed with JOBS_SERVER, JOBS_CA; give all four",
    ],
    [
      "a server by flag with the current context's certificates",
      { server: "flag:1" },
      {},
      "the command line gives server alone, and is not mixed with the file's current context lab",
    ],
    [
      "a server by flag with the context that the environment names",
      { server: "flag:1" },
      { JOBS_CONTEXT: "half" },
      "the command line gives server alone, and is not mixed with JOBS_CONTEXT, the file's current context lab",
    ],
    [
      "parts by flags with a context by flag",
      { ...pair, context: "lab" },
      {},
      "--cert, --key of the command line and --context lab of config.json are not mixed: give one of the two",
    ],
    [
      "all parts of the environment with its context",
      {},
      { ...all, JOBS_CONTEXT: "nope" },
      "JOBS_SERVER, JOBS_CA, JOBS_CERT, JOBS_KEY of the environment and JOBS_CONTEXT nope of config.json are not mixed",
    ],
    [
      "one part of the environment with its context",
      {},
      { JOBS_CONTEXT: "lab", JOBS_SERVER: "e:1" },
      "JOBS_SERVER of the environment and JOBS_CONTEXT lab of config.json are not mixed: give one of the two",
    ],
    [
      "a context by flag with the environment's certificate",
      { context: "half" },
      all,
      "no ca, cert, key: context half gives server alone, and is not mixed with JOBS_CA, JOBS_CERT, JOBS_KEY",
    ],
    [
      "the environment's server with the current context's certificate",
      {},
      { JOBS_SERVER: "env:1" },
      "no ca, cert, key: the environment gives server alone, and is not mixed with the file's current context lab",
    ],
  ])("refuses %s", async (_, flags, env, message) => {
    await expect(find(flags, env)).rejects.toThrow(message);
  });

  it("needs no file where flags and environment have all", async () => {
    expect(await find({}, { ...all, XDG_CONFIG_HOME: "/nonexistent" })).toMatchObject({
      server: "env:1",
      key: "env.key",
    });
  });

  it("tells where it is from", async () => {
    expect(await find({}, {})).toEqual({
      server: "lab:1",
      ca: join(home, "jobs", "lab.ca"),
      cert: "/etc/lab.crt",
      key: join(home, "jobs", "lab.key"),
      sources: expect.stringMatching(/^server lab:1, ca .*, key .* \(context lab\)$/),
    });
  });

  it("that lacks something names it, and the three ways to give it", async () => {
    const missing = find({ server: "x:1" }, { XDG_CONFIG_HOME: "/nonexistent" });
    await expect(missing).rejects.toThrow(UsageError);
    await expect(missing).rejects.toThrow(
      "no ca, cert, key: give --ca --cert --key, or set JOBS_CA JOBS_CERT JOBS_KEY, or name a context in /nonexistent/jobs/config.json",
    );
  });

  it("refuses a context that is not there or not right, naming the file", async () => {
    await expect(find({ context: "nope" }, {})).rejects.toThrow(`${file}: no context "nope"; it has lab, half, bad`);
    await expect(find({ context: "toString" }, {})).rejects.toThrow('no context "toString"');
    await expect(find({ context: "bad" }, {})).rejects.toThrow(`${file}: contexts.bad.server must be a string`);
    await expect(find({ context: "x" }, { XDG_CONFIG_HOME: "/nonexistent" })).rejects.toThrow(
      "context x: /nonexistent/jobs/config.json: no such file or directory",
    );
  });

  const BOM = "\ufeff";
  const LAB = JSON.stringify({ current: "lab", contexts: { lab: { server: "lab:1", ca: "a", cert: "b", key: "c" } } });
  it.each<[string, string | Buffer, string]>([
    ["no JSON", "{", "is not JSON: "],
    ["empty", "", "is empty; {} is an empty one"],
    ["UTF-16", Buffer.from(BOM + LAB, "utf16le"), "is UTF-16; save it as UTF-8"],
    ["not UTF-8", Buffer.from('{"current":"\xff"}', "latin1"), "is not UTF-8"],
    ["a list", "[]", 'must be an object with "contexts"'],
    ["of contexts in a list", '{"contexts":[]}', "contexts must be an object of contexts by name"],
    ["of a current context that is no name", '{"current":1}', "current must be the name of a context"],
    ["too large", " ".repeat(300 * 1024), "is over 256 KiB"],
  ])("refuses a config file that is %s, naming it", async (_, contents, message) => {
    const { dir, config } = await settings(contents);
    const refused = find({}, { XDG_CONFIG_HOME: dir });
    await expect(refused).rejects.toThrow(SettingError);
    await expect(refused).rejects.toThrow(`${config}: ${message}`);
  });

  it("reads a config file with a byte order mark", async () => {
    const { dir } = await settings(BOM + LAB);
    expect(await find({}, { XDG_CONFIG_HOME: dir })).toMatchObject({ server: "lab:1" });
  });

  it("tells that the config file is a directory, or cannot be read, also where no context is named", async () => {
    const dir = await mkdtemp(join(home, "bad-"));
    const config = join(dir, "jobs", "config.json");
    await mkdir(config, { recursive: true });
    await expect(find({}, { XDG_CONFIG_HOME: dir })).rejects.toThrow(`${config}: is a directory; a file is needed`);
    await expect(find({ context: "x" }, { XDG_CONFIG_HOME: dir })).rejects.toThrow(
      `context x: ${config}: is a directory`,
    );
    const below = find({}, { XDG_CONFIG_HOME: file });
    await expect(below).rejects.toThrow(`${file}/jobs/config.json: not a directory`);
    // Root may read a file of any mode; a loop of links is unreadable to everybody.
    const loop = await mkdtemp(join(home, "loop-"));
    await mkdir(join(loop, "jobs"));
    await symlink("config.json", join(loop, "jobs", "config.json"));
    await expect(find({}, { XDG_CONFIG_HOME: loop })).rejects.toThrow("too many symbolic links encountered");
  });

  describe("takes nothing from the directory that it is run in", () => {
    const before = process.cwd();
    afterEach(() => process.chdir(before));

    it.each<[string, NodeJS.ProcessEnv, string]>([
      ["HOME=", { HOME: "" }, "HOME is empty"],
      ["HOME=.", { HOME: "." }, 'HOME is ".", which is not an absolute path'],
      ["XDG_CONFIG_HOME=conf", { XDG_CONFIG_HOME: "conf" }, 'XDG_CONFIG_HOME is "conf", which is not an absolute path'],
      ["XDG_CONFIG_HOME=.config", { HOME: "/root", XDG_CONFIG_HOME: ".config" }, 'XDG_CONFIG_HOME is ".config"'],
    ])("with %s, and says why", async (_, env, message) => {
      const dir = await mkdtemp(join(home, "cwd-"));
      for (const place of ["jobs", "conf/jobs", ".config/jobs"]) {
        await mkdir(join(dir, place), { recursive: true });
        await writeFile(join(dir, place, "config.json"), LAB);
      }
      process.chdir(dir);
      const given = (flags: Readonly<Record<string, string>>) => findConnection({ text: (name) => flags[name] }, env);
      await expect(given({})).rejects.toThrow(`or name a context in config.json, which is nowhere: ${message}`);
      await expect(given({ context: "lab" })).rejects.toThrow(`context lab: there is no config.json: ${message}`);
      expect(await findConnection({ text: () => undefined }, { ...all, ...env })).toMatchObject({ server: "env:1" });
    });
  });
});

/** A new directory for XDG_CONFIG_HOME whose config.json has these contents. */
async function settings(contents: string | Buffer): Promise<{ readonly dir: string; readonly config: string }> {
  const dir = await mkdtemp(join(home, "settings-"));
  const config = join(dir, "jobs", "config.json");
  await mkdir(join(dir, "jobs"));
  await writeFile(config, contents);
  return { dir, config };
}

describe("a private key's file", () => {
  it.each([0o644, 0o640, 0o604, 0o660, 0o601])("with mode %o is refused, saying what would be right", async (mode) => {
    const key = join(home, "some.key");
    await rm(key, { force: true });
    await writeFile(key, "key");
    await chmod(key, mode);
    await expect(readPrivate(key)).rejects.toThrow(`(mode 0${mode.toString(8)}): chmod 600 ${key}`);
    await chmod(key, 0o600);
    expect(await readPrivate(key)).toEqual(Buffer.from("key"));
    await chmod(key, 0o400);
    expect(await readPrivate(key)).toEqual(Buffer.from("key"));
  });

  it("that is missing is named", async () => {
    const credentials = readCredentials({ server: "x:1", ca: "/nonexistent.crt", cert: "", key: "", sources: "" });
    await expect(credentials).rejects.toThrow("/nonexistent.crt: no such file or directory");
  });
});
