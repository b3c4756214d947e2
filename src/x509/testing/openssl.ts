import { execFile, spawnSync } from "node:child_process";
import { promisify } from "node:util";

/** Why the openssl program cannot be used here; undefined where it can. */
export const withoutOpenssl: string | undefined = reason();

function reason(): string | undefined {
  const { error, stdout } = spawnSync("openssl", ["version"], { encoding: "utf8" });
  if (error) return "there is no openssl program here";
  return /^OpenSSL [3-9]/.test(stdout) ? undefined : `openssl 3 is needed, this is ${stdout.trim()}`;
}

/** Runs a script of openssl commands in a directory. Throws what the first command that fails says. */
export async function shell(script: string, cwd: string): Promise<void> {
  await promisify(execFile)("sh", ["-euc", script], { cwd });
}
