import { invalid, quoted } from "../model/errors.ts";
import type { LinuxDeviceCgroup } from "../model/resources.ts";
import { between, type Host, MAJOR_MAX, MINOR_MAX } from "./setting.ts";

const FIELD = "resources.devices";
const RULES = 300; // a program of more might not fit in a frame of the spawner: 64 KiB
const TYPES = { b: 1, c: 2 } as const; // BPF_DEVCG_DEV_*, include/uapi/linux/bpf.h
const ACCESSES: Readonly<Record<string, number>> = { m: 1, r: 2, w: 4 }; // BPF_DEVCG_ACC_*
const ALL = 7;

/** A rule for some devices: an absent part matches any. */
interface Rule {
  readonly allow: boolean;
  readonly type?: keyof typeof TYPES | undefined;
  readonly major?: bigint | undefined;
  readonly minor?: bigint | undefined;
  readonly access: number;
}

const character = (major: bigint, minor?: bigint): Rule => ({ allow: true, type: "c", major, minor, access: ALL });
/** Allows the devices that every program may expect, and no others: null, zero, full, random, urandom, tty, ptmx and the pts. */
const DEFAULT: readonly Rule[] = [
  { allow: false, access: ALL },
  ...[3n, 5n, 7n, 8n, 9n].map((minor) => character(1n, minor)),
  ...[0n, 2n].map((minor) => character(5n, minor)),
  character(136n),
];

/** The rules of a job that asked for none, and that could open every device by file permissions. */
export const DEFAULT_DEVICES: readonly LinuxDeviceCgroup[] = [{ allow: false }];

/**
 * The eBPF program (BPF_PROG_TYPE_CGROUP_DEVICE) that enforces `devices`; undefined when there are no rules. A later rule
 * overrides an earlier one, separately for reading, writing and mknod; an open that needs several of these is allowed if
 * each is. Without a rule a device has DEFAULT, and a rule that denies everything brings DEFAULT back. Throws JobError
 * `invalid`.
 */
export function deviceProgram(devices: readonly LinuxDeviceCgroup[], host: Pick<Host, "device">): Buffer | undefined {
  if (devices.length === 0) return undefined;
  if (devices.length > RULES) throw invalid(FIELD, `${devices.length} rules are more than ${RULES}`);
  let rules = [...DEFAULT];
  for (const [i, device] of devices.entries()) {
    const rule = ruleOf(`${FIELD}[${i}]`, device, host);
    if (!rule.allow && rule.access === ALL && matchesAll(rule)) rules = [...DEFAULT];
    else rules.push(rule);
  }
  return assemble(rules);
}

function matchesAll({ type, major, minor }: Rule): boolean {
  return type === undefined && major === undefined && minor === undefined;
}

function ruleOf(field: string, device: LinuxDeviceCgroup, host: Pick<Host, "device">): Rule {
  const { allow, access = "rwm" } = device;
  if (!/^[rwm]+$/.test(access))
    throw invalid(`${field}.access`, `${quoted(access)} is not an access; give some of r, w and m, or leave it out`);
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
      throw invalid(`${field}.type`, `${quoted(type)} is not a type; give b or c, or a for both`);
    return {
      type: type === "a" ? undefined : type,
      major: number(`${field}.major`, major, MAJOR_MAX),
      minor: number(`${field}.minor`, minor, MINOR_MAX),
    };
  }
  if (type !== "a" || major !== undefined || minor !== undefined)
    throw invalid(`${field}.path`, "is given beside a type or a device number; give one of them");
  const device = host.device(path);
  if (device) return device;
  throw invalid(`${field}.path`, `${quoted(path)} is not a device of this worker, such as /dev/null`);
}

/** A major or minor number; undefined for any. Docker writes `*` as -1. */
function number(field: string, value: bigint | undefined, most: bigint): bigint | undefined {
  return value === undefined || value === -1n ? undefined : between(field, value, 0n, most);
}

/** `offset` is where a load reads, or how many instructions a jump skips. */
type Instruction = readonly [code: number, register: number, immediate: number, offset?: number];
/** Labels to jump to: behind the rule, and behind all rules. */
const [NEXT, END] = [-1, -2];
/** Instructions of include/uapi/linux/bpf.h. */
const LOAD = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const LOAD_HALF = 0x69; // BPF_LDX | BPF_MEM | BPF_H
const MOVE = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const JUMP = 0x05; // BPF_JMP | BPF_JA
const IF_NOT = 0x55; // BPF_JMP | BPF_JNE | BPF_K
const IF_ANY = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const EXIT = 0x95; // BPF_JMP | BPF_EXIT
/** Registers: r0 is the verdict, r2 holds a part of the context, to which r1 points. */
const [VERDICT, PART] = [0, 2];
const FROM_CONTEXT = 0x10;
/** Offsets in struct bpf_cgroup_dev_ctx, of which the first word is access << 16 | type. */
const [AT_TYPE, AT_ACCESS, AT_MAJOR, AT_MINOR] = [0, 2, 4, 8];

/**
 * One walk over the rules for each set of accesses that the same rules mention; the first walk that denies decides. Rules
 * share no state but the context: the verifier would follow every value of it, in quadratic time.
 */
function assemble(rules: readonly Rule[]): Buffer {
  const walks = new Map<string, number>();
  for (const bit of [1, 2, 4]) {
    const about = rules.map(({ access }) => access & bit && 1).join("");
    walks.set(about, (walks.get(about) ?? 0) | bit);
  }
  const instructions: Instruction[] = [
    [MOVE, VERDICT, 0],
    ...walks.entries().flatMap(([, accesses]) => walk(accesses, rules)),
    [MOVE, VERDICT, 1],
    [EXIT, 0, 0],
  ];
  return Buffer.concat(instructions.map(encode));
}

/**
 * From the last rule back to one for all devices: the verifier refuses instructions behind that, which nothing reaches.
 * An access that is allowed goes on behind the walk.
 */
function walk(accesses: number, rules: readonly Rule[]): Instruction[] {
  const about = rules.filter(({ access }) => access & accesses);
  return resolve(END, [
    [LOAD_HALF, PART | FROM_CONTEXT, 0, AT_ACCESS],
    [IF_ANY, PART, accesses, 1],
    [JUMP, 0, 0, END],
    ...about.slice(about.findLastIndex(matchesAll)).toReversed().flatMap(block),
  ]);
}

function block({ allow, type, major, minor }: Rule): Instruction[] {
  const part = (load: number, at: number, is: bigint | number | undefined): Instruction[] =>
    is === undefined
      ? []
      : [
          [load, PART | FROM_CONTEXT, 0, at],
          [IF_NOT, PART, Number(is), NEXT],
        ];
  return resolve(NEXT, [
    ...part(LOAD_HALF, AT_TYPE, type && TYPES[type]),
    ...part(LOAD, AT_MAJOR, major),
    ...part(LOAD, AT_MINOR, minor),
    allow ? [JUMP, 0, 0, END] : [EXIT, 0, 0],
  ]);
}

function resolve(label: number, instructions: readonly Instruction[]): Instruction[] {
  return instructions.map(([code, register, immediate, offset], at) => [
    code,
    register,
    immediate,
    offset === label ? instructions.length - at - 1 : (offset ?? 0),
  ]);
}

/** Encodes a struct bpf_insn, little-endian as every host that the supervisor runs on. */
function encode([code, register, immediate, offset = 0]: Instruction): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeUInt8(code, 0);
  bytes.writeUInt8(register, 1);
  bytes.writeInt16LE(offset, 2);
  bytes.writeInt32LE(immediate, 4);
  return bytes;
}
