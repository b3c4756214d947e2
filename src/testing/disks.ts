import { execFileSync, spawnSync } from "node:child_process";
import { accessSync, constants, existsSync, mkdirSync, mkdtempSync, rmdirSync, rmSync, writeFileSync } from "node:fs";
import { basename } from "node:path";
import { codeOf } from "../os/errno.ts";
import { until } from "./processes.ts";
import { isRoot } from "./root.ts";

/** Why no disk can be mounted here; undefined where one can. */
export const noMounts = isRoot ? undefined : "it takes root";

/** Why no disk can be had that turns read-only under its writers. */
export const noReadOnly = noMounts ?? (isWritable("/sys/fs/ext4") ? undefined : "/sys/fs/ext4 is not to be written to");

function isWritable(path: string): boolean {
  try {
    accessSync(path, constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

/** A disk of its own at `path`, which is made. */
export interface Disk extends Disposable {
  readonly path: string;
  /** Fills the disk to its last block. */
  fill(): void;
  empty(): void;
}

/** A tmpfs of so many bytes. */
export function smallDisk(path: string, bytes: number): Disk {
  mkdirSync(path, { mode: 0o755 });
  execFileSync("mount", ["-t", "tmpfs", "-o", `size=${bytes},mode=755`, "tmpfs", path]);
  return diskAt(path, []);
}

/** An ext4 of so many bytes in a file beside it. */
export function ext4Disk(path: string, bytes: number): Disk {
  mkdirSync(path, { mode: 0o755 });
  const image = `${path}.img`;
  execFileSync("truncate", ["-s", String(bytes), image]);
  execFileSync("mkfs.ext4", ["-q", "-m", "0", image]);
  mountExt4(path);
  return diskAt(path, [image]);
}

/** Options are given at the first mount: another mount namespace may keep the disk as it was then. */
function mountExt4(path: string): void {
  execFileSync("mount", ["-o", "loop,errors=remount-ro", `${path}.img`, path]);
}

export interface ErringDisk extends Disk {
  /** Makes the disk read-only, as an error does that the kernel meets in it. All that had been written is on it. */
  err(): Promise<void>;
  /** Checks the disk and mounts it again, once nobody has a file of it open. */
  repair(): Promise<void>;
}

/** An ext4 of so many bytes that can be made to err. */
export function erringDisk(path: string, bytes: number): ErringDisk {
  const disk = ext4Disk(path, bytes);
  const device = execFileSync("findmnt", ["-n", "-o", "SOURCE", path]).toString().trim();
  const kernel = `/sys/fs/ext4/${basename(device)}`;
  return {
    ...disk,
    async err() {
      execFileSync("sync", ["-f", path]);
      writeFileSync(`${kernel}/trigger_fs_error`, "1");
      // The kernel leaves it to a worker of its own, which may be late.
      await until(() => isReadOnly(path), "the disk is read-only");
    },
    async repair() {
      unmount(path);
      await until(() => !existsSync(kernel), "no mount namespace has it");
      spawnSync("e2fsck", ["-f", "-y", `${path}.img`]); // it has found something, of course
      mountExt4(path);
    },
  };
}

/** Whether nothing can be made in a directory, for a disk that is read-only: mount options do not tell of errors. */
function isReadOnly(path: string): boolean {
  try {
    rmdirSync(mkdtempSync(`${path}/probe-`));
    return false;
  } catch (error) {
    if (codeOf(error) === "EROFS") return true;
    throw error;
  }
}

function diskAt(path: string, images: readonly string[]): Disk {
  const ballast = `${path}/ballast`;
  return {
    path,
    fill() {
      spawnSync("dd", ["if=/dev/zero", `of=${ballast}`, "bs=4k", "status=none"]);
      // Blocks of metadata may still be had: what is asked for by the byte takes those.
      for (let i = 0; i < 64; i++) {
        try {
          writeFileSync(`${ballast}-${i}`, Buffer.alloc(1));
        } catch {
          return;
        }
      }
    },
    empty() {
      execFileSync("sh", ["-c", `rm -f ${ballast}*`]);
    },
    [Symbol.dispose]() {
      unmount(path);
      for (const image of images) rmSync(image);
    },
  };
}

/** Unmounts a disk, and tries again: a process that has just ended may still be closing its files. */
function unmount(path: string): void {
  const script = 'for i in $(seq 100); do umount "$0" 2>&1 && exit; sleep 0.05; done; exec umount "$0"';
  execFileSync("sh", ["-c", script, path]);
}
