import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, rename, rm } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { say } from "./steps.ts";

/** What is slow to make, kept between runs. Whoever has it open is the only one: it holds a lock until disposed of. */
export interface Cache extends AsyncDisposable {
  /**
   * The directory NAME-KEY, which `make` fills when it is not there. It appears whole or not at all, and those of other
   * keys go: a file of theirs that a virtual machine has open lives on until that is closed.
   */
  entry(name: string, key: string, make: (directory: string) => Promise<void>): Promise<string>;
}

/** A short name for what something is made of. */
export function keyOf(...parts: readonly (string | Buffer)[]): string {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(`${part.length} `).update(part);
  return hash.digest("hex").slice(0, 16);
}

/** Opens `$XDG_CACHE_HOME/jobs-e2e`; waits for another run that has it open. */
export async function openCache(signal: AbortSignal): Promise<Cache> {
  const root = join(process.env["XDG_CACHE_HOME"] || join(homedir(), ".cache"), "jobs-e2e");
  await mkdir(root, { recursive: true });
  const lock = await takeLock(join(root, "lock"), signal);
  // What a run that was killed left unfinished.
  for (const name of await readdir(root)) if (name.startsWith("new-")) await rm(join(root, name), { recursive: true });
  return {
    async entry(name, key, make) {
      const path = join(root, `${name}-${key}`);
      if (existsSync(path)) return path;
      const fresh = await mkdtemp(join(root, "new-"));
      try {
        await make(fresh);
        await rename(fresh, path);
      } catch (error) {
        await rm(fresh, { recursive: true, force: true });
        throw error;
      }
      for (const other of await readdir(root))
        if (other.startsWith(`${name}-`) && other !== `${name}-${key}`)
          await rm(join(root, other), { recursive: true });
      return path;
    },
    async [Symbol.asyncDispose]() {
      await lock[Symbol.asyncDispose]();
    },
  };
}

/** Holds flock(2) on a file by a process that ends when its stdin does, so also when this process is killed. */
async function takeLock(path: string, signal: AbortSignal): Promise<AsyncDisposable> {
  const holder = spawn("flock", [path, "sh", "-c", "echo held; exec cat"], {
    detached: true,
    stdio: ["pipe", "pipe", "inherit"],
  });
  const ended = new Promise((resolve) => holder.once("close", resolve));
  const release = async (): Promise<void> => {
    if (holder.pid !== undefined && holder.exitCode === null) process.kill(-holder.pid, "SIGTERM");
    await ended;
  };
  const waiting = setTimeout(() => say("another run is preparing the same things; waiting for it"), 1000);
  try {
    await new Promise<void>((resolve, reject) => {
      holder.once("error", reject);
      holder.once("close", () => reject(new Error(`flock could not lock ${path}`)));
      holder.stdout.once("data", () => resolve());
      signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    });
  } catch (error) {
    await release();
    throw error;
  } finally {
    clearTimeout(waiting);
  }
  return { [Symbol.asyncDispose]: release };
}
