import { execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { accessSync, constants, existsSync, mkdirSync, mkdtempSync, rmSync, rmdirSync, writeFileSync } from "node:fs";
import { basename } from "node:path";
import { codeOf } from "../../os/errno.ts";
import { isRoot } from "../../testing/root.ts";
import { soon, until } from "./processes.ts";

/** Why a test of this kind cannot be done here; undefined where it can. */
export const noMounts = isRoot ? undefined : "it takes root";
export const noStrace = spawnSync("strace", ["-V"]).status === 0 ? undefined : "strace is not installed";
/** Supervisors cannot be dumped, and so root alone can trace them. */
export const noInjection = noStrace ?? noMounts;

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

export interface Fault extends AsyncDisposable {
  /** Resolves when so many calls have ended so. */
  met(times?: number): Promise<void>;
}

/**
 * Has these system calls of a process, and of its threads, end with an errno, from when this resolves until it is
 * disposed. `calls` is strace's: "pwrite64,renameat". With a path, only those that concern that file.
 */
export function failing(pid: number, calls: string, errno: string, path?: string): Promise<Fault> {
  return injecting(pid, calls, `error=${errno}`, path);
}

/** Has these system calls of a process take so much longer, as failing() has them fail. */
export function delaying(pid: number, calls: string, delayMs: number): Promise<Fault> {
  return injecting(pid, calls, `delay_enter=${delayMs * 1000}`);
}

async function injecting(pid: number, calls: string, what: string, path?: string): Promise<Fault> {
  const rules = [...(path === undefined ? [] : ["-P", path]), "-e", `trace=${calls}`, "-e", `inject=${calls}:${what}`];
  const strace = spawn("strace", ["-f", "-p", String(pid), ...rules], { stdio: ["ignore", "ignore", "pipe"] });
  let said = "";
  strace.stderr.on("data", (text: Buffer) => (said += text.toString()));
  const ended = once(strace, "close");
  await until(() => said.includes("attached") || strace.exitCode !== null, "strace is attached");
  if (!said.includes("attached")) throw new Error(said);
  return {
    met: (times = 1) => until(() => said.split("(INJECTED)").length > times, `${times} ${calls} of ${pid} have failed`),
    async [Symbol.asyncDispose]() {
      strace.kill("SIGINT"); // it lets go of what it traces
      await soon(ended, "strace has let go");
    },
  };
}

/** A disk of its own at `path`, which is made. */
export interface Disk extends Disposable {
  readonly path: string;
  /** Leaves no block. */
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
  /** Makes it read-only, as an error does that the kernel meets in it. What had been written is on it. */
  err(): Promise<void>;
  /** Has it checked and mounted again, once nobody has a file of it open. */
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

/** What has just ended may be closing its files yet. */
function unmount(path: string): void {
  const script = 'for i in $(seq 100); do umount "$0" 2>&1 && exit; sleep 0.05; done; exec umount "$0"';
  execFileSync("sh", ["-c", script, path]);
}
