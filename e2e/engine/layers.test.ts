import { mkdir, mkdtempDisposable, readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { sharedLayers, withoutLayers } from "./layers.ts";
import { run } from "./process.ts";

const { signal } = new AbortController();

test("layers are shared from the first on, up to the first that differs", () => {
  expect(sharedLayers("id a b c", "other a b d")).toBe(2);
  expect(sharedLayers("id a b", "id a b")).toBe(2);
  expect(sharedLayers("id a b", "other c b")).toBe(0);
  expect(sharedLayers("id a b")).toBe(0);
});

test("an archive without the layers that are known has everything else, to its end", async () => {
  await using directory = await mkdtempDisposable(join(tmpdir(), "layers-"));
  const at = (name: string): string => join(directory.path, name);
  const names = ["a", "b", "c"].map((letter) => letter.repeat(64));
  for (const name of names) {
    await mkdir(at(`saved/${name}`), { recursive: true });
    await writeFile(at(`saved/${name}/json`), "{}");
    await writeFile(at(`saved/${name}/layer.tar`), name.repeat(5000));
  }
  const manifest = JSON.stringify([{ Layers: names.map((name) => `${name}/layer.tar`) }]);
  await writeFile(at("saved/manifest.json"), manifest);
  await run("tar", ["-cf", at("saved.tar"), "-C", at("saved"), ...names, "manifest.json"], { signal });

  await mkdir(at("rest"));
  const rest = await withoutLayers(at("saved.tar"), 2, at("rest"), signal);
  await mkdir(at("unpacked"));
  await run("tar", ["-xf", rest, "-C", at("unpacked")], { signal });
  const files = await run("find", [at("unpacked"), "-type", "f", "-printf", "%P\n"], { signal });
  expect(files.split("\n").toSorted()).toEqual(
    [...names.map((name) => `${name}/json`), `${names[2]}/layer.tar`, "manifest.json"].toSorted(),
  );
  expect(await readFile(at("unpacked/manifest.json"), "utf8")).toBe(manifest);
});
