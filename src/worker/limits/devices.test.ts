import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { LinuxDeviceCgroup } from "../model/resources.ts";
import { refused } from "../testing/worker.ts";
import { deviceProgram } from "./devices.ts";
import { testHost } from "./testing/host.ts";

/** An access that a process asks for. An open(2) for reading and writing is "rw". */
interface Request {
  readonly type: "b" | "c";
  readonly major: number;
  readonly minor: number;
  readonly access: string;
}

function assembled(...devices: readonly LinuxDeviceCgroup[]): Buffer {
  const program = deviceProgram(devices, testHost()) ?? Buffer.alloc(0);
  expect(unreachable(program)).toEqual([]);
  return program;
}

/** Instructions that nothing reaches: the kernel refuses a program that has any (check_cfg, kernel/bpf/verifier.c). */
function unreachable(program: Buffer): number[] {
  const reached = new Set<number>();
  const next = [0];
  for (let at = next.pop(); at !== undefined; at = next.pop()) {
    if (reached.has(at)) continue;
    reached.add(at);
    const [code, target] = [program.readUInt8(at * 8), at + 1 + program.readInt16LE(at * 8 + 2)];
    if (code === 0x45 || code === 0x55) next.push(at + 1, target);
    else if (code !== 0x95) next.push(code === 0x05 ? target : at + 1);
  }
  return Array.from({ length: program.length / 8 }, (_, at) => at).filter((at) => !reached.has(at));
}

/** Runs a program as the kernel does: the part of Documentation/bpf/standardization/instruction-set.rst that is used. */
function run(program: Buffer, { type, major, minor, access }: Request): bigint {
  const bits = (access.includes("m") ? 1 : 0) | (access.includes("r") ? 2 : 0) | (access.includes("w") ? 4 : 0);
  const kind = type === "b" ? 1 : 2;
  const registers: (bigint | undefined)[] = [undefined, 0xc0n];
  const read = (register: number): bigint => {
    const value = registers[register];
    if (value === undefined) throw new Error(`r${register} is read before it is written`);
    return value;
  };
  for (let at = 0, steps = 0; at * 8 < program.length; at++, steps++) {
    const code = program.readUInt8(at * 8);
    const [target, source] = [program.readUInt8(at * 8 + 1) & 15, program.readUInt8(at * 8 + 1) >> 4];
    const offset = program.readInt16LE(at * 8 + 2);
    const immediate = BigInt(program.readInt32LE(at * 8 + 4));
    const jumps = {
      0x05: () => true,
      0x45: () => (read(target) & BigInt.asUintN(64, immediate)) !== 0n,
      0x55: () => read(target) !== BigInt.asUintN(64, immediate),
    };
    if (code === 0x95) return read(0);
    if (code === 0x61 && source === 1) registers[target] = BigInt({ 4: major, 8: minor }[offset] ?? Number.NaN);
    else if (code === 0x69 && source === 1) registers[target] = BigInt({ 0: kind, 2: bits }[offset] ?? Number.NaN);
    else if (code === 0xb7) registers[target] = BigInt.asUintN(64, immediate);
    else if (code === 0x05 || code === 0x45 || code === 0x55) at += jumps[code]() ? offset : 0;
    else throw new Error(`instruction ${at} has code ${code}`);
    if (steps > program.length) throw new Error("it does not end");
  }
  throw new Error("it runs off its end");
}

function allows(rules: readonly LinuxDeviceCgroup[], request: Request): boolean {
  return run(assembled(...rules), request) === 1n;
}

const NULL = { type: "c", major: 1, minor: 3, access: "rw" } as const;
const DISK = { type: "b", major: 8, minor: 0, access: "rw" } as const;
const CONSOLE = { type: "c", major: 5, minor: 1, access: "w" } as const;
const MEMORY = { type: "c", major: 1, minor: 1, access: "r" } as const;

test("without rules there is no program", () => {
  expect(deviceProgram([], testHost())).toBeUndefined();
});

test("a program is assembled to the byte", () => {
  const words = assembled({ allow: true }, { allow: false, type: "b", major: 8n, access: "w" });
  expect(words.toString("hex").match(/.{16}/g)).toEqual([
    "b700000000000000", // r0 = 0
    "6912020000000000", // r2 = *(u16 *)(r1 + 2)
    "4502010003000000", // if r2 & 3 goto +1
    "0500010000000000", // goto +1
    "0500000000000000", // goto +0
    "6912020000000000", // r2 = *(u16 *)(r1 + 2)
    "4502010004000000", // if r2 & 4 goto +1
    "0500060000000000", // goto +6
    "6912000000000000", // r2 = *(u16 *)(r1 + 0)
    "5502030001000000", // if r2 != 1 goto +3
    "6112040000000000", // r2 = *(u32 *)(r1 + 4)
    "5502010008000000", // if r2 != 8 goto +1
    "9500000000000000", // exit
    "0500000000000000", // goto +0
    "b700000001000000", // r0 = 1
    "9500000000000000", // exit
  ]);
});

describe("a device that no rule matches", () => {
  test.each([
    ["null", 1, 3],
    ["zero", 1, 5],
    ["full", 1, 7],
    ["random", 1, 8],
    ["urandom", 1, 9],
    ["tty", 5, 0],
    ["ptmx", 5, 2],
    ["pts/0", 136, 0],
    ["pts/77", 136, 77],
  ])("is allowed when it is one that every program may expect, as %s", (_name, major, minor) => {
    const request = { type: "c", major, minor, access: "rw" } as const;
    for (const rules of [[{ allow: true, type: "b" }], [{ allow: false }]]) expect(allows(rules, request)).toBe(true);
  });

  test("is denied when no program needs it, and when it has such a device's number but another type", () => {
    for (const request of [DISK, MEMORY, CONSOLE, { ...NULL, type: "b" }, { ...NULL, major: 3, minor: 1 }] as const)
      for (const rules of [[{ allow: true, type: "c", major: 10n }], [{ allow: false, type: "c", major: 4n }]])
        expect(allows(rules, request)).toBe(false);
  });
});

describe("a later rule overrides an earlier one", () => {
  test("and may deny a device that every program expects, by its number", () => {
    expect(allows([{ allow: false, type: "c", major: 1n, minor: 3n, access: "w" }], NULL)).toBe(false);
    expect(allows([{ allow: false, type: "c", major: 1n, minor: 3n, access: "w" }, { allow: false }], NULL)).toBe(true);
  });

  test("as in the examples of opencontainers/cgroups", () => {
    const except = (minor: bigint): LinuxDeviceCgroup => ({ allow: false, type: "b", major: 8n, minor, access: "rwm" });
    const disk = (minor: number): Request => ({ ...DISK, minor });
    expect([0, 1].map((minor) => allows([{ allow: true }, except(0n)], disk(minor)))).toEqual([false, true]);
    const weird = [except(1n), { allow: true }, except(2n)];
    expect([1, 2, 3].map((minor) => allows(weird, disk(minor)))).toEqual([true, false, true]);
  });

  test("separately for each access, and an open needs all of its accesses allowed", () => {
    const disk = { type: "b", major: 8n, minor: 0n };
    const rules = [
      { allow: true, ...disk, access: "r" },
      { allow: true, type: "b", access: "w" },
    ];
    expect(["r", "w", "rw", "m", "rm"].map((access) => allows(rules, { ...DISK, access }))).toEqual([
      true,
      true,
      true,
      false,
      false,
    ]);
    rules.push({ allow: false, ...disk, access: "w" });
    expect(["r", "w", "rw"].map((access) => allows(rules, { ...DISK, access }))).toEqual([true, false, false]);
  });
});

test("-1 matches any number, and a path matches the device that is there", () => {
  const fuse = { type: "c", major: 10, minor: 229, access: "rw" } as const;
  for (const rule of [{ path: "/dev/fuse" }, { type: "c", major: 10n, minor: -1n }, { type: "c", major: -1n }])
    expect(allows([{ allow: true, ...rule }], fuse)).toBe(true);
  expect(allows([{ allow: true, path: "/dev/fuse", access: "r" }], fuse)).toBe(false);
  expect(allows([{ allow: true, path: "/dev/fuse" }], { ...fuse, type: "b" })).toBe(false);
});

describe("a rule is refused", () => {
  test.each<[string, Partial<LinuxDeviceCgroup>, string]>([
    ["type", { type: "x" }, "give b or c, or a for both"],
    ["type", { type: "u" }, "give b or c, or a for both"],
    ["type", { type: "" }, "give b or c, or a for both"],
    ["access", { access: "q" }, "give some of r, w and m"],
    ["access", { access: "rx" }, "give some of r, w and m"],
    ["access", { access: "" }, "give some of r, w and m"],
    ["major", { major: -2n }, "between 0 and 4095"],
    ["major", { major: 4096n }, "between 0 and 4095"],
    ["minor", { major: 1n, minor: -(2n ** 63n) }, "between 0 and 1048575"],
    ["minor", { major: 1n, minor: 2n ** 20n }, "between 0 and 1048575"],
    ["path", { path: "/no/such/device" }, "is not a device of this worker"],
    ["path", { path: "" }, "is not a device of this worker"],
    ["path", { path: "/dev/fuse", major: 10n }, "give one of them"],
    ["path", { path: "/dev/fuse", type: "b" }, "give one of them"],
  ])("by its %s: %o", async (part, rule, right) => {
    const error = await refused(() => assembled({ allow: true }, { allow: false, ...rule }));
    expect(error).toMatchObject({ code: "invalid", field: `resources.devices[1].${part}` });
    expect(error.message).toContain(right);
  });

  test("when it is one too many; the most that are allowed fit in a frame", async () => {
    const rule = { allow: true, type: "c", major: 4095n, minor: 1_048_575n, access: "rw" };
    const most = Array.from({ length: 300 }, () => rule);
    expect(assembled(...most).length).toBeLessThan((64 << 10) - 16 - 4096);
    expect(await refused(() => assembled(...most, rule))).toMatchObject({
      code: "invalid",
      field: "resources.devices",
    });
  });
});

/** Decides by the letter of the rules: forwards, one access at a time. */
function reference(rules: readonly LinuxDeviceCgroup[], { type, major, minor, access }: Request): boolean {
  const expected =
    type === "c" &&
    ((major === 1 && [3, 5, 7, 8, 9].includes(minor)) || (major === 5 && [0, 2].includes(minor)) || major === 136);
  return Array.from(access).every((letter) => {
    let allowed = expected;
    for (const rule of rules) {
      const any = [rule.type ?? "a", rule.major ?? -1n, rule.minor ?? -1n].join() === "a,-1,-1";
      const every = any && ["r", "w", "m"].every((one) => (rule.access ?? "rwm").includes(one));
      const matches =
        ["a", undefined, type].includes(rule.type) &&
        [-1n, undefined, BigInt(major)].includes(rule.major) &&
        [-1n, undefined, BigInt(minor)].includes(rule.minor) &&
        (rule.access ?? "rwm").includes(letter);
      if (matches) allowed = every && !rule.allow ? expected : rule.allow;
    }
    return allowed;
  });
}

test("whatever the rules, an access is allowed if the last rule that matches each part of it allows it", () => {
  const major = [0, 1, 5, 136, 4095];
  const minor = [0, 1, 3, 1_048_575];
  const letters = fc.uniqueArray(fc.constantFrom("r", "w", "m"), { minLength: 1 }).map((all) => all.join(""));
  const rule: fc.Arbitrary<LinuxDeviceCgroup> = fc.record(
    {
      allow: fc.boolean(),
      type: fc.constantFrom("a", "b", "c"),
      major: fc.constantFrom(-1n, ...major.map(BigInt)),
      minor: fc.constantFrom(-1n, ...minor.map(BigInt)),
      access: letters,
    },
    { requiredKeys: ["allow"] },
  );
  const request: fc.Arbitrary<Request> = fc.record({
    type: fc.constantFrom("b", "c"),
    major: fc.constantFrom(...major),
    minor: fc.constantFrom(...minor),
    access: letters,
  });
  fc.assert(
    fc.property(
      fc.array(rule, { minLength: 1, maxLength: 6 }),
      fc.array(request, { minLength: 8 }),
      (rules, requests) => {
        for (const request of requests)
          expect({ request, allowed: allows(rules, request) }).toEqual({ request, allowed: reference(rules, request) });
      },
    ),
    { numRuns: 2000 },
  );
});
