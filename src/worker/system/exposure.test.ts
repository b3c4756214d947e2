import {
  chmodSync,
  chownSync,
  lchownSync,
  mkdirSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { noMounts, smallDisk } from "../../testing/disks.ts";
import { needsRoot, unless } from "../../testing/root.ts";
import { recoverJournal } from "../journal/rebuild.ts";
import { openDirectory } from "../journal/state-directory.ts";
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

// As Kubernetes mounts an emptyDir.
describe("in a volume that all may write to, of root,", unless(noMounts), () => {
  test("a state directory is refused with what helps: the sticky bit, or the volume at the directory itself", () => {
    using files = testDirectory();
    const path = join(files.path, "volume");
    using _volume = smallDisk(path, 32 * 2 ** 20);
    const stateDir = join(path, "state");
    mkdirSync(stateDir);
    chmodSync(path, 0o777);
    const remedy = `chmod og-w ${path}, or chmod +t ${path}, or mount that volume at the state directory itself, or name`;
    expect(() => openDirectory(stateDir)).toThrow(
      `${path} of root (uid 0) can be written by other users (mode 777); ${remedy}`,
    );
    chmodSync(path, 0o1777);
    openDirectory(stateDir);
    rmSync(stateDir, { recursive: true });
    chmodSync(path, 0o777);
    openDirectory(path);
    expect(statSync(path).mode & 0o7777).toBe(0o700);
    openDirectory(path);
  });
});
