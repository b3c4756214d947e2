import { mkdir, mkdtempDisposable, readdir, readFile, stat, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { certificatesIn } from "../src/x509/pem.ts";
import { readFrom, writeFiles } from "./files.ts";

const temporary = () => mkdtempDisposable(join(tmpdir(), "jobs-certs-"));

describe("writing files", () => {
  it("gives each the mode it was asked for, whatever the umask", async () => {
    await using dir = await temporary();
    const [key, crt] = [join(dir.path, "a.key"), join(dir.path, "a.crt")];
    const before = process.umask(0o277);
    try {
      await writeFiles([
        { path: key, text: "k", mode: 0o600 },
        { path: crt, text: "c", mode: 0o644 },
      ]);
    } finally {
      process.umask(before);
    }
    expect((await stat(key)).mode & 0o777).toBe(0o600);
    expect((await stat(crt)).mode & 0o777).toBe(0o644);
    expect(await readdir(dir.path)).toEqual(["a.crt", "a.key"]);
  });

  it("leaves none of them, and no temporary file, when one cannot be put in its place", async () => {
    await using dir = await temporary();
    const files = ["first", "second"].map((name) => ({ path: join(dir.path, name), text: name, mode: 0o600 as const }));
    // Both look free at the start, but one name cannot be had twice.
    await expect(writeFiles([...files, ...files])).rejects.toThrow(`${join(dir.path, "first")}: already exists`);
    expect(await readdir(dir.path)).toEqual([]);
  });

  it("has one winner among many that write the same name at once", async () => {
    await using dir = await temporary();
    const path = join(dir.path, "a.key");
    const writers = Array.from({ length: 20 }, (_, n) => writeFiles([{ path, text: `${n}`, mode: 0o600 }]));
    const won = (await Promise.allSettled(writers)).flatMap(({ status }, n) => (status === "fulfilled" ? [n] : []));
    expect(won).toHaveLength(1);
    expect(await readFile(path, "utf8")).toBe(`${won[0]}`);
    expect(await readdir(dir.path)).toEqual(["a.key"]);
  });
});

describe("a directory to write to", () => {
  it("that no file system lets anybody make is refused", async () => {
    // Node's own recursive mkdir never returns where the file system says ENOENT.
    const refused = writeFiles([{ path: "/proc/nope/a.key", text: "k", mode: 0o600 }]);
    await expect(refused).rejects.toThrow("/proc/nope: no such file or directory");
  });
});

describe("reading a PEM file", () => {
  it("says of each unfit file what is wrong with it", async () => {
    await using dir = await temporary();
    const path = join(dir.path, "a.crt");
    await writeFile(path, "hello");
    await expect(readFrom(path, certificatesIn)).rejects.toThrow(`${path}: holds nothing in PEM`);
    await truncate(path, 300 * 1024);
    await expect(readFrom(path, certificatesIn)).rejects.toThrow(`${path}: is over 256 KiB`);
    await mkdir(join(dir.path, "sub"));
    await expect(readFrom(join(dir.path, "sub"), certificatesIn)).rejects.toThrow(
      "sub: is a directory; a file is needed",
    );
  });
});
