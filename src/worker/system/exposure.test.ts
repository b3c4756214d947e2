import { chmodSync, chownSync, lchownSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { needsRoot } from "../../testing/root.ts";
import { recoverJournal } from "../journal/rebuild.ts";
import { testDirectory, testWorker } from "../testing/worker.ts";

const STRANGER = 65534;

describe("a worker is refused a state directory", needsRoot, () => {
  const exposures: readonly (readonly [what: string, path: string, expose: (path: string, top: string) => void])[] = [
    ["that belongs to another user", "state", (path) => chownSync(path, STRANGER, 0)],
    ["that holds something, and may be written by all", "state", (path) => chmodSync(path, 0o777)],
    ["below a directory of another user", "", (path) => chownSync(path, STRANGER, 0)],
    ["below a directory that all may write, where they could replace it", "", (path) => chmodSync(path, 0o777)],
    [
      "below a directory that a group with other members may write",
      "",
      (path) => {
        chownSync(path, 0, STRANGER);
        chmodSync(path, 0o775);
      },
    ],
    ["whose jobs directory belongs to another user", "state/jobs", (path) => chownSync(path, STRANGER, 0)],
    ["whose jobs directory may be written by all", "state/jobs", (path) => chmodSync(path, 0o777)],
    ["whose journal belongs to another user", "state/journal.db", (path) => chownSync(path, STRANGER, 0)],
    ["whose journal may be written by all", "state/journal.db", (path) => chmodSync(path, 0o666)],
    [
      "with a link of another user",
      "state/lock",
      (path, top) => {
        symlinkSync(join(top, "elsewhere"), path);
        lchownSync(path, STRANGER, 0);
      },
    ],
  ];

  test.each(exposures)("%s", async (_what, name, expose) => {
    using directory = testDirectory();
    const stateDir = join(directory.path, "state");
    mkdirSync(join(stateDir, "jobs"), { recursive: true });
    if (name.endsWith(".db")) writeFileSync(join(directory.path, name), "");
    const path = join(directory.path, name);
    expose(path, directory.path);
    const before = readdirSync(directory.path, { recursive: true });
    const facts = expect.objectContaining({ reason: "exposed", path: path.replace(/\/$/, "") });
    const refused = { code: "unavailable", facts };
    await expect(testWorker({ stateDir })).rejects.toMatchObject(refused);
    expect(() => recoverJournal(stateDir)).toThrow(expect.objectContaining(refused));
    expect(readdirSync(directory.path, { recursive: true })).toEqual(before);
  });

  test("by a link that another user may change, to a directory that none may", async () => {
    using directory = testDirectory();
    mkdirSync(join(directory.path, "state"));
    mkdirSync(join(directory.path, "links"));
    const link = join(directory.path, "links/state");
    symlinkSync("../state", link);
    lchownSync(link, STRANGER, 0);
    await expect(testWorker({ stateDir: link })).rejects.toMatchObject({ facts: { reason: "exposed", path: link } });
  });
});

test("a state directory is taken below one with the sticky bit, by a link of one's own, and when it is empty", async () => {
  using directory = testDirectory();
  const real = join(directory.path, "real");
  mkdirSync(real);
  chmodSync(real, 0o777);
  chmodSync(directory.path, 0o1777);
  symlinkSync("real", join(directory.path, "link"));
  await using worker = await testWorker({ stateDir: join(directory.path, "link") });
  expect(worker.list({ limit: 1 }).jobs).toEqual([]);
});
