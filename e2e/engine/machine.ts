import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { putOnDisk, type BuiltImage } from "./builder.ts";
import { type Cache, keyOf } from "./cache.ts";
import { docker } from "./docker.ts";
import { CommandError, ready, run, start, tail, type Service } from "./process.ts";
import { FAST, fromMemory, hardware, saveMemory } from "./qemu.ts";
import { step } from "./steps.ts";

/** How many ports Docker can publish; the guest and this machine give them the same numbers. */
const PORTS = 32;
const FIRST_PORT = 42000;
const LAST_PORT = 43000;
const HARDWARE = hardware(4096);
const KERNEL_WORDS = `console=ttyS0 panic=-1 root=/dev/vda rw init=/sbin/engine-init ${FAST}`;
const BOOT_TIMEOUT_MS = 300_000;

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

/** A port of this machine that the virtual machine needs is another program's. */
class PortsTaken extends Error {}

/**
 * Starts the virtual machine as it was when its Docker had come up: the first run boots it and saves its memory and its
 * disks. What the guest writes from then on is gone with it. Its Docker has the image of the run that saved it.
 *
 * @throws CommandError with the end of the console's log when its Docker does not answer
 */
export async function startMachine(
  cache: Cache,
  guest: string,
  image: BuiltImage,
  signal: AbortSignal,
): Promise<Machine> {
  const version = await run("qemu-system-x86_64", ["--version"], { signal });
  const key = keyOf(version, guest, image.bases, KERNEL_WORDS, String(PORTS), ...HARDWARE);
  for (let first = FIRST_PORT; first < LAST_PORT; first += PORTS + 1) {
    try {
      const saved = await cache.entry(`machine-${first}`, key, (directory) =>
        save(guest, image, first, directory, signal),
      );
      const machine = await power(guest, saved, first, fromMemory(saved));
      return await step("virtual machine started", () => machine.up(signal));
    } catch (error) {
      if (!(error instanceof PortsTaken)) throw error;
    }
  }
  throw new CommandError(`no ${PORTS + 1} ports in a row are free between ${FIRST_PORT} and ${LAST_PORT}`);
}

/** Boots the machine and leaves root.img, docker.img and memory in `directory`, as they were at one moment. */
async function save(
  guest: string,
  image: BuiltImage,
  first: number,
  directory: string,
  signal: AbortSignal,
): Promise<void> {
  await run("cp", ["--sparse=always", join(guest, "root.img"), directory], { signal });
  await step("image put on a disk", () => putOnDisk(image, join(directory, "docker.img"), signal));
  const machine = await power(guest, directory, first, []);
  await using booted = await step("virtual machine booted", () => machine.up(signal));
  // Reads into memory what every container is started with.
  const container = ["run", "--rm", "--privileged", "--publish", "1", image.tag, "--version"];
  await step("first container run", () => docker(booted.host, container, { signal }));
  await step("virtual machine saved", () => saveMemory(machine.monitor, directory));
}

interface Powered {
  /** Resolves when the Docker answers and the clock is right; stops the machine when neither comes. */
  up(signal: AbortSignal): Promise<Machine>;
  /** The socket of QEMU's monitor. */
  readonly monitor: string;
}

/** @param disks the directory of root.img and docker.img */
async function power(guest: string, disks: string, first: number, more: readonly string[]): Promise<Powered> {
  await using stack = new AsyncDisposableStack();
  const scratch = await mkdtemp(join(tmpdir(), "jobs-engine-"));
  stack.defer(() => rm(scratch, { recursive: true, force: true }));
  const [console, clock, monitor = ""] = ["console", "clock", "monitor"].map((name) => join(scratch, name));
  const last = first + PORTS - 1;
  const api = last + 1;
  const ports = Array.from({ length: PORTS }, (_, i) => first + i);
  const forwards = ports.map((port) => `hostfwd=tcp:127.0.0.1:${port}-:${port}`);
  const kernel = ["-kernel", join(guest, "vmlinuz"), "-initrd", join(guest, "initrd.img")];
  const words = ["-append", `${KERNEL_WORDS} ports=${first}-${last}`];
  const drives = ["root.img", "docker.img"].flatMap((name) => [
    "-drive",
    `file=${join(disks, name)},format=raw,if=virtio,cache=unsafe`,
  ]);
  const lines = ["-serial", `file:${console}`, "-serial", `unix:${clock},server=on,wait=off`];
  const control = ["-monitor", `unix:${monitor},server=on,wait=off`];
  const network = `user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:${api}-:2375,${forwards.join(",")}`;
  const args = [...HARDWARE, ...kernel, ...words, ...drives, ...lines, ...control, "-nic", network, ...more];
  const qemu: Service = stack.use(start("qemu-system-x86_64", args, join(scratch, "qemu"), 5000));
  const host = `tcp://127.0.0.1:${api}`;
  const lifetime = stack.move();

  return {
    monitor,
    async up(signal) {
      await using failed = new AsyncDisposableStack();
      failed.use(lifetime);
      const check = async (limit: AbortSignal): Promise<void> => {
        await setClock(clock ?? "", limit);
        await docker(host, ["version"], { signal: limit });
      };
      try {
        await ready("the virtual machine's Docker", qemu, check, { signal, timeoutMs: BOOT_TIMEOUT_MS });
      } catch (error) {
        signal.throwIfAborted();
        if (qemu.output().includes("Could not set up host forwarding rule")) throw new PortsTaken();
        const said = await readFile(console ?? "", "utf8").catch(() => "");
        throw new CommandError(
          "the virtual machine did not come up",
          `${error instanceof Error ? error.message : String(error)}\nits console:\n${tail(said)}`,
        );
      }
      const rest = failed.move();
      return { host, [Symbol.asyncDispose]: () => rest.disposeAsync() };
    },
  };
}

/** Tells the guest what time it is, and resolves when it has set its clock: guest-init waits for a line. */
async function setClock(path: string, signal: AbortSignal): Promise<void> {
  const socket = connect(path).setEncoding("utf8");
  let said = "";
  socket.on("data", (text: string) => (said += text));
  try {
    await once(socket, "connect", { signal });
    // The first line may come without its beginning, from before the machine went on: the second one counts.
    for (const answers of ["set\n", "set\nset\n"]) {
      socket.write(`${(Date.now() / 1000).toFixed(3)}\n`);
      while (said !== answers) await once(socket, "data", { signal });
    }
  } finally {
    socket.destroy();
  }
}
