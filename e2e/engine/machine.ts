import { randomBytes } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Cache, keyOf } from "./cache.ts";
import { docker, MACHINE_LABEL } from "./docker.ts";
import { CommandError, ready, run, start, tail, type Service } from "./process.ts";
import { step } from "./steps.ts";

/** Of the ports that Docker publishes, which the guest and this machine give the same numbers. */
const PORTS = 32;
const FIRST_PORT = 42000;
const LAST_PORT = 43000;
/** Stock kernels do not come up under KVM everywhere, and under TCG, QEMU's own emulation, they do. */
const ACCELERATOR = process.env["JOBS_E2E_ACCEL"] || "tcg,thread=multi,tb-size=1024";
const BOOT_TIMEOUT_MS = 180_000;

/** Makes the guest's kernel and root: a Debian with a Docker engine. Returns their directory. */
export async function makeGuest(cache: Cache, signal: AbortSignal): Promise<string> {
  const scripts = ["make-guest", "guest-init"].map((name) => fileURLToPath(new URL(name, import.meta.url)));
  const key = keyOf(...(await Promise.all(scripts.map((path) => readFile(path)))));
  return cache.entry("guest", key, async (directory) => {
    await step("virtual machine's root made", () => run(scripts[0] ?? "", [directory], { signal }));
  });
}

export interface Machine extends AsyncDisposable {
  readonly host: string;
}

/**
 * Boots the virtual machine, with `docker.img` under /var/lib/docker. What the guest writes is kept in a temporary file
 * and gone with it.
 *
 * @throws CommandError with the end of the console's log when its Docker does not answer
 */
export async function bootMachine(guest: string, dockerImage: string, signal: AbortSignal): Promise<Machine> {
  for (let first = FIRST_PORT; first < LAST_PORT; first += PORTS + 1) {
    const machine = await bootWithPorts(guest, dockerImage, first, signal);
    if (machine) return machine;
  }
  throw new CommandError(`no ${PORTS + 1} ports in a row are free between ${FIRST_PORT} and ${LAST_PORT}`);
}

/** Undefined when one of the ports from `first` on is taken. */
async function bootWithPorts(
  guest: string,
  dockerImage: string,
  first: number,
  signal: AbortSignal,
): Promise<Machine | undefined> {
  await using stack = new AsyncDisposableStack();
  const scratch = await mkdtemp(join(tmpdir(), "jobs-engine-"));
  stack.defer(() => rm(scratch, { recursive: true, force: true }));
  const name = randomBytes(8).toString("hex");
  const console = join(scratch, "console");
  const last = first + PORTS - 1;
  const api = last + 1;
  const ports = Array.from({ length: PORTS }, (_, i) => first + i);
  const forwards = ports.map((port) => `hostfwd=tcp:127.0.0.1:${port}-:${port}`);
  const hardware = ["-accel", ACCELERATOR, "-cpu", "max", "-smp", "2", "-m", "4096", "-display", "none", "-no-reboot"];
  const kernel = ["-kernel", join(guest, "vmlinuz"), "-initrd", join(guest, "initrd.img")];
  const words = `console=ttyS0 panic=-1 root=/dev/vda rw init=/sbin/engine-init quiet mitigations=off ports=${first}-${last} machine=${name}`;
  const disks = [join(guest, "root.img"), dockerImage].flatMap((path) => [
    "-drive",
    `file=${path},format=raw,if=virtio,snapshot=on`,
  ]);
  const network = `user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:${api}-:2375,${forwards.join(",")}`;
  const args = [...hardware, ...kernel, "-append", words, ...disks, "-serial", `file:${console}`, "-nic", network];
  const qemu: Service = stack.use(start("qemu-system-x86_64", args, join(scratch, "qemu"), 5000));
  const host = `tcp://127.0.0.1:${api}`;
  try {
    await step("virtual machine booted", () =>
      ready("the virtual machine's Docker", qemu, (signal) => answers(host, name, signal), {
        signal,
        timeoutMs: BOOT_TIMEOUT_MS,
      }),
    );
  } catch (error) {
    signal.throwIfAborted();
    if (qemu.output().includes("Could not set up host forwarding rule")) return undefined;
    const said = await readFile(console, "utf8").catch(() => "");
    throw new CommandError(
      "the virtual machine did not come up",
      `${error instanceof Error ? error.message : String(error)}\nits console:\n${tail(said)}`,
    );
  }
  const rest = stack.move();
  return { host, [Symbol.asyncDispose]: () => rest.disposeAsync() };
}

/** Throws unless this very machine answers: another one may have had the port first. */
async function answers(host: string, name: string, signal: AbortSignal): Promise<void> {
  const labels = await docker(host, ["info", "--format", "{{.Labels}}"], { signal });
  if (!labels.includes(`${MACHINE_LABEL}=${name}`)) throw new Error("another engine answers");
}
