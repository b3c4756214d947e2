import { chmod, mkdir, mkdtempDisposable, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { findConnection, readCredentials, readKey, SettingError } from "./connection.ts";
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
  it("takes each part from flags, then the environment, then the context", async () => {
    expect(await find({ server: "flag:1" }, { JOBS_CA: "env.ca" })).toEqual({
      server: "flag:1",
      ca: "env.ca",
      cert: "/etc/lab.crt",
      key: join(home, "jobs", "lab.key"),
      sources: expect.stringContaining(
        "server flag:1 (flags), ca env.ca (environment), cert /etc/lab.crt (context lab)",
      ),
    });
  });

  it("needs no file where flags and environment have all", async () => {
    expect(await find({}, { ...all, XDG_CONFIG_HOME: "/nonexistent" })).toMatchObject({
      server: "env:1",
      key: "env.key",
    });
  });

  it("takes the context that is named, by flag before environment", async () => {
    expect(await find({ context: "half" }, { ...all, JOBS_SERVER: "", JOBS_CONTEXT: "lab" })).toMatchObject({
      server: "half:1",
    });
    expect(await find({}, { ...all, JOBS_SERVER: "", JOBS_CONTEXT: "half" })).toMatchObject({ server: "half:1" });
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

  it("refuses a config file that is no JSON, naming it", async () => {
    await mkdir(join(home, "broken", "jobs"), { recursive: true });
    await writeFile(join(home, "broken", "jobs", "config.json"), "{");
    const broken = find({}, { XDG_CONFIG_HOME: join(home, "broken") });
    await expect(broken).rejects.toThrow(SettingError);
    await expect(broken).rejects.toThrow(/broken\/jobs\/config\.json: /);
  });
});

describe("a private key's file", () => {
  it.each([0o644, 0o640, 0o604, 0o660, 0o601])("with mode %o is refused, saying what would be right", async (mode) => {
    const key = join(home, "some.key");
    await writeFile(key, "key");
    await chmod(key, mode);
    await expect(readKey(key)).rejects.toThrow(`(mode 0${mode.toString(8)}): chmod 600 ${key}`);
    await chmod(key, 0o600);
    expect(await readKey(key)).toEqual(Buffer.from("key"));
    await chmod(key, 0o400);
    expect(await readKey(key)).toEqual(Buffer.from("key"));
  });

  it("that is missing is named", async () => {
    const credentials = readCredentials({ server: "x:1", ca: "/nonexistent.crt", cert: "", key: "", sources: "" });
    await expect(credentials).rejects.toThrow("/nonexistent.crt: no such file or directory");
  });
});
