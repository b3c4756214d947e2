import { mkdir, mkdtemp, readFile, rename, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { watchFiles } from "./watch.ts";

/** Watches a path in an empty directory that `make` fills. Returns what `changed` has read of the file, newest last. */
async function watching(path: string, make: (dir: string) => Promise<unknown>) {
  const dir = await mkdtemp(join(tmpdir(), "jobs-watch-"));
  onTestFinished(() => rm(dir, { recursive: true }));
  await make(dir);
  const file = join(dir, path);
  const seen: (string | undefined)[] = [];
  const failed: unknown[] = [];
  const watched = watchFiles(
    [file],
    () =>
      void readFile(file, "utf8")
        .then((text) => seen.push(text))
        .catch(() => seen.push(undefined)),
    (_, error) => failed.push(error),
  );
  onTestFinished(() => watched[Symbol.dispose]());
  const shows = (text: string | undefined) => expect.poll(() => seen.at(-1), { timeout: 30_000 }).toBe(text);
  return { dir, file, seen, failed, shows };
}

/** A volume of Kubernetes: the file is a link over a link to a directory, and the second link is replaced by a rename. */
async function publish(dir: string, version: string): Promise<void> {
  await mkdir(join(dir, version));
  await writeFile(join(dir, version, "tls.crt"), version);
  await symlink(version, join(dir, "..next"));
  await rename(join(dir, "..next"), join(dir, "..data"));
}

const replace = async (file: string, text: string): Promise<void> => {
  await writeFile(`${file}.new`, text);
  await rename(`${file}.new`, file);
};

test("a file that is written in place or replaced by a rename has changed", async () => {
  const { file, shows } = await watching("a.crt", (dir) => writeFile(join(dir, "a.crt"), "1"));
  for (const text of ["2", "3"]) {
    await writeFile(file, text);
    await shows(text);
  }
  for (const text of ["4", "5"]) {
    await replace(file, text);
    await shows(text);
  }
});

test("a volume of Kubernetes whose link is swapped has changed, each time", async () => {
  const { dir, shows } = await watching("tls.crt", async (at) => {
    await publish(at, "..1");
    await symlink("..data/tls.crt", join(at, "tls.crt"));
  });
  for (const version of ["..2", "..3", "..4"]) {
    await publish(dir, version);
    await shows(version);
  }
});

test("a file behind a link to another directory, as certbot has it, has changed when either has", async () => {
  const { dir, file, shows } = await watching("live/lab/cert.pem", async (at) => {
    await mkdir(join(at, "live/lab"), { recursive: true });
    await mkdir(join(at, "archive/lab"), { recursive: true });
    await writeFile(join(at, "archive/lab/cert1.pem"), "1");
    await symlink("../../archive/lab/cert1.pem", join(at, "live/lab/cert.pem"));
  });
  await writeFile(join(dir, "archive/lab/cert2.pem"), "2");
  await symlink("../../archive/lab/cert2.pem", `${file}.new`);
  await rename(`${file}.new`, file);
  await shows("2");
  await writeFile(join(dir, "archive/lab/cert2.pem"), "2, in place");
  await shows("2, in place");
});

test("a file has changed when a link to a directory above it leads elsewhere, and when that directory is replaced", async () => {
  const { dir, file, shows } = await watching("current/a.crt", async (at) => {
    for (const name of ["1", "2", "3"]) {
      await mkdir(join(at, name));
      await writeFile(join(at, name, "a.crt"), name);
    }
    await symlink("1", join(at, "current"));
  });
  await symlink(join(dir, "2"), join(dir, "new"));
  await rename(join(dir, "new"), dirname(file));
  await shows("2");
  await rename(join(dir, "2"), join(dir, "old"));
  await rename(join(dir, "3"), join(dir, "2"));
  await shows("3");
});

test("a file that comes later, goes and comes again has changed each time", async () => {
  const { dir, file, shows } = await watching("below/it/a.crt", () => Promise.resolve());
  await mkdir(join(dir, "below/it"), { recursive: true });
  await writeFile(file, "1");
  await shows("1");
  await rm(join(dir, "below"), { recursive: true });
  await shows(undefined);
  await mkdir(join(dir, "below/it"), { recursive: true });
  await writeFile(file, "2");
  await shows("2");
});

test("changes without a pause are one, and those of other files none", async () => {
  const { dir, file, seen, shows } = await watching("a.crt", (at) => writeFile(join(at, "a.crt"), "1"));
  await writeFile(join(dir, "b.crt"), "another");
  for (let i = 2; i < 50; i++) await writeFile(file, String(i));
  await shows("49");
  expect(seen.length).toBeLessThan(24);
});

test("a link that leads to itself, and a directory that cannot be watched, end nothing", async () => {
  const { failed } = await watching("loop/a.crt", (at) => symlink("loop", join(at, "loop")));
  expect(failed).toEqual([]);
  const told: string[] = [];
  using _watched = watchFiles(
    ["/proc/self/environ/no/a.crt"],
    () => undefined,
    (directory) => told.push(directory),
  );
  expect(told.length).toBeLessThanOrEqual(1);
});
