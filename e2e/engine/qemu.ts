import { once } from "node:events";
import { connect } from "node:net";
import { CommandError } from "./process.ts";

/** Stock kernels do not come up under KVM everywhere, and under TCG, QEMU's own emulation, they do. */
const ACCELERATOR = process.env["JOBS_E2E_ACCEL"] || "tcg,thread=multi,tb-size=1024";
/**
 * Returns QEMU's flags for a machine. What a later processor has, as AVX, five levels of page tables and SMAP, takes an
 * emulator time: a process costs a third less without. Memory that was saved can be loaded by the same hardware only.
 */
export function hardware(megabytes: number): string[] {
  const machine = ["-cpu", "Westmere,+rdrand", "-smp", "2", "-m", String(megabytes)];
  return ["-accel", ACCELERATOR, ...machine, "-display", "none", "-no-reboot"];
}

/** Words for the kernel. clearcpuid=112 is for copies by moves: a string instruction is a loop to the emulator. */
export const FAST = "quiet mitigations=off init_on_alloc=0 randomize_kstack_offset=off preempt=none clearcpuid=112";

/** Ends a machine, and leaves its memory in DIRECTORY/memory. `monitor` is the socket of QEMU's monitor. */
export async function saveMemory(monitor: string, directory: string): Promise<void> {
  const said = await tell(monitor, [
    "migrate_set_parameter max-bandwidth 8G",
    `migrate "exec:cat > ${directory}/memory"`,
    "info migrate",
    "quit",
  ]);
  if (!said.includes("Migration status: completed")) throw new CommandError("the memory could not be saved", said);
}

/** Returns QEMU's flags that have a machine go on from what saveMemory left, and change nothing of it. */
export function fromMemory(directory: string): string[] {
  return ["-snapshot", "-incoming", `exec:cat ${directory}/memory`];
}

/** Gives QEMU's monitor commands of which the last is quit, and resolves to what it answered. */
async function tell(monitor: string, commands: readonly string[]): Promise<string> {
  const socket = connect(monitor).setEncoding("utf8");
  let said = "";
  socket.on("data", (text: string) => (said += text));
  socket.write(commands.map((command) => `${command}\n`).join(""));
  await once(socket, "close");
  return said;
}
