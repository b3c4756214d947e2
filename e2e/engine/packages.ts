import { existsSync } from "node:fs";
import { delimiter, join } from "node:path";
import { CommandError, run } from "./process.ts";
import { say, step } from "./steps.ts";

/** The programs that the virtual machines, the images and the packages for them are made with, and Debian's packages of them. */
const NEEDED: Readonly<Record<string, string>> = {
  "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
  docker: "docker.io",
  dockerd: "docker.io",
  flock: "util-linux",
  mke2fs: "e2fsprogs",
  mmdebstrap: "mmdebstrap",
  "qemu-system-x86_64": "qemu-system-x86",
  setpriv: "util-linux",
  strip: "binutils",
  unshare: "util-linux",
};

/** Debian keeps some of them where only root's PATH leads. */
export const PATH = [...(process.env["PATH"] ?? "").split(delimiter), "/usr/sbin", "/sbin"].join(delimiter);

/** What keeps this machine from running the virtual machine, undefined when nothing does. */
export function obstacle(): string | undefined {
  if (process.platform !== "linux" || process.arch !== "x64") return "the virtual machine is for Linux on x86-64";
  if (process.getuid?.() !== 0) return "the virtual machine is made as root";
  const missing = missingPrograms();
  if (missing.length > 0 && !existsSync("/usr/bin/apt-get"))
    return `there is no apt-get to install ${missing.join(", ")} with`;
  return undefined;
}

/** Installs the packages of the programs that are missing, and says which. */
export async function installPrograms(signal: AbortSignal): Promise<void> {
  const missing = missingPrograms();
  if (missing.length === 0) return;
  const packages = [...new Set(missing.map((program) => NEEDED[program] ?? program))];
  say(`${missing.join(", ")} missing: apt-get install ${packages.join(" ")}`);
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  await step("packages installed", async () => {
    await run("apt-get", ["update", "-q"], { signal, env });
    await run("apt-get", ["install", "-q", "-y", "--no-install-recommends", ...packages], { signal, env });
  });
  const still = missingPrograms();
  if (still.length > 0) throw new CommandError(`apt-get installed no ${still.join(", ")}`);
}

function missingPrograms(): string[] {
  return Object.keys(NEEDED).filter(
    (program) => !PATH.split(delimiter).some((directory) => existsSync(join(directory, program))),
  );
}
