import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { createReadStream } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { pipeline } from "node:stream/promises";
import { fileURLToPath } from "node:url";
import { keyOf, openCache } from "./cache.ts";
import { installPrograms, PATH } from "./packages.ts";
import { CommandError, ready, run, type Service, start, tail } from "./process.ts";
import { FAST, fromMemory, hardware, saveMemory } from "./qemu.ts";
import { step } from "./steps.ts";

const HARDWARE = hardware(2048);
const KERNEL_WORDS = `console=ttyS0 panic=-1 root=/dev/vda rw ${FAST}`;
/** Once it has booted. apt reads its lists a second time in a tenth of the time. */
const SETTLE = "systemctl is-system-running --wait; apt-cache gencaches; sync";
const BOOT_TIMEOUT_MS = 600_000;
/** This machine, as QEMU's user network shows it to the guest. */
const HOST = "10.0.2.2";

/** What a command has written, stdout and stderr as they came, and its exit code. */
export interface Said {
  readonly code: number;
  readonly output: string;
}

/** A virtual machine with a new Debian, whose first process is systemd. Disposing ends it, and nothing is left of it. */
export interface Debian extends AsyncDisposable {
  /** Runs lines of bash as root, one call after another in one shell: variables, directory and $? stay. */
  bash(script: string): Promise<Said>;
  /** Copies files of this machine into a directory there. */
  put(directory: string, ...files: readonly string[]): Promise<void>;
}

/**
 * Starts the machine as it was when systemd had started all: the first run makes it, boots it and saves it.
 *
 * @throws CommandError with the end of the console's log when systemd does not come up
 */
export async function startDebian(signal: AbortSignal): Promise<Debian> {
  process.env["PATH"] = PATH;
  await installPrograms(signal);
  await using cache = await openCache(signal);
  const script = fileURLToPath(new URL("make-debian", import.meta.url));
  const guest = await cache.entry("debian", keyOf(await readFile(script)), async (directory) => {
    await step("a new Debian made", () => run(script, [directory], { signal }));
  });
  const version = await run("qemu-system-x86_64", ["--version"], { signal });
  const saved = await cache.entry("debian-up", keyOf(version, guest, KERNEL_WORDS, SETTLE, ...HARDWARE), (directory) =>
    save(guest, directory, signal),
  );
  return await step("Debian started", () => power(guest, saved, fromMemory(saved), signal));
}

/** Boots the machine and leaves root.img and memory in `directory`, as they were at one moment. */
async function save(guest: string, directory: string, signal: AbortSignal): Promise<void> {
  await run("cp", ["--sparse=always", join(guest, "root.img"), directory], { signal });
  await using machine = await step("Debian booted", () => power(guest, directory, [], signal));
  await machine.bash(SETTLE);
  await step("Debian saved", () => saveMemory(machine.monitor, directory));
}

/** @param disks the directory of root.img */
async function power(
  guest: string,
  disks: string,
  more: readonly string[],
  signal: AbortSignal,
): Promise<Debian & { readonly monitor: string }> {
  await using stack = new AsyncDisposableStack();
  const scratch = await mkdtemp(join(tmpdir(), "jobs-debian-"));
  stack.defer(() => rm(scratch, { recursive: true, force: true }));
  const [console, line, monitor] = [join(scratch, "console"), join(scratch, "shell"), join(scratch, "monitor")];
  const kernel = ["-kernel", join(guest, "vmlinuz"), "-initrd", join(guest, "initrd.img"), "-append", KERNEL_WORDS];
  const drive = ["-drive", `file=${join(disks, "root.img")},format=raw,if=virtio,cache=unsafe`];
  const lines = ["-serial", `file:${console}`, "-serial", `unix:${line},server=on,wait=off`];
  const control = ["-monitor", `unix:${monitor},server=on,wait=off`, "-nic", "user,model=virtio-net-pci"];
  const args = [...HARDWARE, ...kernel, ...drive, ...lines, ...control, ...more];
  const qemu = stack.use(start("qemu-system-x86_64", args, join(scratch, "qemu"), 5000));
  const socket = await openLine(line, console, qemu, signal);
  stack.defer(() => void socket.destroy());
  const bash = shellOn(socket);
  // A machine that goes on from saved memory is told what time it is.
  await bash(`date --set=@${(Date.now() / 1000).toFixed(3)}`);
  const lifetime = stack.move();
  return {
    monitor,
    bash,
    put: (directory, ...files) => put(bash, directory, files),
    [Symbol.asyncDispose]: () => lifetime.disposeAsync(),
  };
}

/** Connects to the shell's line, and resolves when the shell answers. */
async function openLine(path: string, console: string, qemu: Service, signal: AbortSignal): Promise<Socket> {
  let answering: Socket | undefined;
  const check = async (limit: AbortSignal): Promise<void> => {
    const socket = connect(path).setEncoding("utf8");
    try {
      await once(socket, "connect", { signal: limit });
      // What is answered may be half a line of the machine's past: a word of our own is not.
      const mark = randomUUID();
      let said = "";
      socket.on("data", (text: string) => (said += text));
      socket.write(`\necho ${mark}\n`);
      while (!said.includes(mark)) await once(socket, "data", { signal: limit });
      socket.removeAllListeners("data");
      answering = socket;
    } finally {
      if (answering === undefined) socket.destroy();
    }
  };
  try {
    await ready("the shell of the virtual machine", qemu, check, { signal, timeoutMs: BOOT_TIMEOUT_MS });
    if (answering !== undefined) return answering;
    throw new Error("unreachable");
  } catch (error) {
    signal.throwIfAborted();
    const said = await readFile(console, "utf8").catch(() => "");
    throw new CommandError("Debian did not come up", `${String(error)}\nits console:\n${tail(said)}`);
  }
}

function shellOn(socket: Socket): Debian["bash"] {
  let last: Promise<unknown> = Promise.resolve();
  let said = "";
  let look = (): void => {};
  socket.on("data", (text: string) => {
    said += text;
    look();
  });
  const tell = async (script: string): Promise<Said> => {
    const mark = randomUUID();
    const ended = new RegExp(`${mark} (\\d+)\\n`);
    const { promise, resolve } = Promise.withResolvers<void>();
    said = "";
    look = () => {
      if (ended.test(said)) resolve();
    };
    // In base64, because a line that the shell reads may be no longer than what its terminal takes at once.
    const base64 = Buffer.from(script).toString("base64").replace(/.{76}/g, "$&\n");
    const lines = [`script=$(base64 -d <<'END'`, base64, "END", ")", "(exit $last)", 'eval "$script" </dev/null'];
    socket.write(`${lines.join("\n")}; last=$?; echo "${mark} $last"\n`);
    await promise;
    const [all, code] = ended.exec(said) ?? [];
    return { code: Number(code), output: said.slice(0, said.indexOf(all ?? "")) };
  };
  return (script) => {
    const result = last.then(() => tell(script));
    last = result.catch(() => {});
    return result;
  };
}

/** Serves the files to the guest, which has no more than bash to fetch them with. */
async function put(bash: Debian["bash"], directory: string, files: readonly string[]): Promise<void> {
  const queue = [...files];
  const server = createServer((socket) => {
    const file = queue.shift();
    if (file === undefined) socket.destroy();
    else void pipeline(createReadStream(file), socket).catch(() => {});
  });
  await once(server.listen(0, "127.0.0.1"), "listening");
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("a server of TCP has a port");
  try {
    const fetches = files.map((file) => `cat </dev/tcp/${HOST}/${address.port} >${basename(file)}`);
    const { code, output } = await bash(`(mkdir -p ${directory} && cd ${directory} && ${fetches.join(" && ")})`);
    if (code !== 0) throw new CommandError(`files did not come to ${directory}`, output);
  } finally {
    server.close();
  }
}
