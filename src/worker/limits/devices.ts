import { invalid } from "../errors.ts";
import type { LinuxDeviceCgroup, LinuxResources } from "../resources.ts";
import { type Host, MAJOR_MAX, MINOR_MAX, between } from "./setting.ts";

const FIELD = "resources.devices";
const RULES = 1000; // of which a program fits in a frame of the spawner's, 64 KiB
const TYPES = { b: 1, c: 2 } as const; // BPF_DEVCG_DEV_*, include/uapi/linux/bpf.h
const ACCESSES: Readonly<Record<string, number>> = { m: 1, r: 2, w: 4 }; // BPF_DEVCG_ACC_*
const ALL = 7;

/** What a rule is about; an absent part is any. */
interface Rule {
  readonly allow: boolean;
  readonly type?: keyof typeof TYPES | undefined;
  readonly major?: bigint | undefined;
  readonly minor?: bigint | undefined;
  readonly access: number;
}

const character = (major: bigint, minor?: bigint): Rule => ({ allow: true, type: "c", major, minor, access: ALL });
/** Nothing but what every program may expect: null, zero, full, random, urandom, tty, console, ptmx and the pts. */
const DEFAULT: readonly Rule[] = [
  { allow: false, access: ALL },
  ...[3n, 5n, 7n, 8n, 9n].map((minor) => character(1n, minor)),
  ...[0n, 1n, 2n].map((minor) => character(5n, minor)),
  character(136n),
];

/**
 * The eBPF program (BPF_PROG_TYPE_CGROUP_DEVICE) that keeps `devices`; undefined where there are no rules. Throws
 * JobError `invalid`. A later rule overrides an earlier one, for each access by itself: what is asked for is allowed if
 * all of it is. No rule allows what DEFAULT does not, and a rule that denies everything leaves DEFAULT.
 */
export function deviceProgram({ devices = [] }: LinuxResources, host: Pick<Host, "device">): Buffer | undefined {
  if (devices.length === 0) return undefined;
  if (devices.length > RULES) throw invalid(FIELD, `${devices.length} rules are more than ${RULES}`);
  let rules = [...DEFAULT];
  for (const [i, device] of devices.entries()) {
    const rule = ruleOf(`${FIELD}[${i}]`, device, host);
    const everything = rule.type === undefined && rule.major === undefined && rule.minor === undefined;
    if (!everything || rule.access !== ALL) rules.push(rule);
    else rules = rule.allow ? [rule] : [...DEFAULT];
  }
  return assemble(rules);
}

function ruleOf(field: string, device: LinuxDeviceCgroup, host: Pick<Host, "device">): Rule {
  const { allow, access = "rwm" } = device;
  if (!/^[rwm]+$/.test(access))
    throw invalid(`${field}.access`, `${JSON.stringify(access)} is no access; some of r, w and m are, or leave it out`);
  const bits = Array.from(access, (letter) => ACCESSES[letter] ?? 0).reduce((sum, bit) => sum | bit, 0);
  return { allow, ...numbersOf(field, device, host), access: bits };
}

function numbersOf(
  field: string,
  { path, type = "a", major, minor }: LinuxDeviceCgroup,
  host: Pick<Host, "device">,
): Pick<Rule, "type" | "major" | "minor"> {
  if (path === undefined) {
    if (type !== "a" && type !== "b" && type !== "c")
      throw invalid(`${field}.type`, `${JSON.stringify(type)} is no type; b, c and, for both, a are`);
    return {
      type: type === "a" ? undefined : type,
      major: number(`${field}.major`, major, MAJOR_MAX),
      minor: number(`${field}.minor`, minor, MINOR_MAX),
    };
  }
  if (type !== "a" || major !== undefined || minor !== undefined)
    throw invalid(`${field}.path`, "and a type or a device number; give one of them");
  const device = host.device(path);
  if (device) return device;
  throw invalid(`${field}.path`, `${JSON.stringify(path)} is no device of this worker, such as /dev/null is`);
}

/** -1 is any, too: Docker writes it for `*`. */
function number(field: string, value: bigint | undefined, most: bigint): bigint | undefined {
  return value === undefined || value === -1n ? undefined : between(field, value, 0n, most);
}

/** Code, register, immediate, and how many instructions a jump leaves out: NEXT is all that are left of its rule. */
type Instruction = readonly [code: number, register: number, immediate: number, jump?: number];
const NEXT = -1;
/** Instructions of include/uapi/linux/bpf.h; their registers are r0, the verdict, and what the context told. */
const LOAD = 0x61; // BPF_LDX | BPF_MEM | BPF_W, from the context
const MOVE = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const AND = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const JUMP = 0x05; // BPF_JMP | BPF_JA
const IF_NOT = 0x55; // BPF_JMP | BPF_JNE | BPF_K
const IF_ANY = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const EXIT = 0x95; // BPF_JMP | BPF_EXIT
const CONTEXT = 0x10; // r1 as source
const [VERDICT, TYPE, ACCESS, MAJOR, MINOR] = [0, 2, 3, 4, 5];

/** The last rule comes first, and takes from ACCESS what it allows; the first one, which is of everything, ends it. */
function assemble(rules: readonly Rule[]): Buffer {
  const prologue: Instruction[] = [
    [MOVE, VERDICT, 0],
    // struct bpf_cgroup_dev_ctx: access << 16 | type, major, minor
    [LOAD, TYPE | CONTEXT, 0, 0],
    [AND, TYPE, 0xffff],
    [LOAD, ACCESS | CONTEXT, 0, 0],
    [SHIFT, ACCESS, 16],
    [LOAD, MAJOR | CONTEXT, 0, 4],
    [LOAD, MINOR | CONTEXT, 0, 8],
  ];
  const blocks = rules.toReversed().map(block);
  return Buffer.concat([prologue, ...blocks].map((instructions) => Buffer.concat(instructions.map(encode))));
}

function block({ allow, type, major, minor, access }: Rule): Instruction[] {
  const matched: Instruction[] = [
    ...(type === undefined ? [] : [[IF_NOT, TYPE, TYPES[type], NEXT] as const]),
    ...(major === undefined ? [] : [[IF_NOT, MAJOR, Number(major), NEXT] as const]),
    ...(minor === undefined ? [] : [[IF_NOT, MINOR, Number(minor), NEXT] as const]),
  ];
  const some: Instruction[] = allow
    ? [
        [AND, ACCESS, ~access],
        [IF_NOT, ACCESS, 0, NEXT],
      ]
    : [
        [IF_ANY, ACCESS, access, 1],
        [JUMP, 0, 0, NEXT],
      ];
  const verdict: Instruction[] = allow
    ? [
        [MOVE, VERDICT, 1],
        [EXIT, 0, 0],
      ]
    : [[EXIT, 0, 0]];
  return [...matched, ...(access === ALL ? [] : some), ...verdict];
}

/** struct bpf_insn, little-endian, as the hosts are that the supervisor is written for. */
function encode([code, register, immediate, jump = 0]: Instruction, at: number, all: readonly Instruction[]): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeUInt8(code, 0);
  bytes.writeUInt8(register, 1);
  bytes.writeInt16LE(jump === NEXT ? all.length - at - 1 : jump, 2);
  bytes.writeInt32LE(immediate, 4);
  return bytes;
}
