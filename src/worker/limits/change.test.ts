import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { LinuxResources } from "../model/resources.ts";
import { type Change, changesOf, isKeyed, lineKey } from "./change.ts";
import { affected, merged } from "./merge.ts";
import type { Setting } from "./setting.ts";
import { settingsOf } from "./settings.ts";
import { testHost } from "./testing/host.ts";

/** The files of a group. A keyed file has a line for each key. */
type State = Readonly<Record<string, string>>;
type Write = Pick<Setting, "file" | "value">;

const NONE: State = {
  "pids.max": "max",
  "memory.swap.max": "max",
  "memory.max": "max",
  "memory.oom.group": "0",
  "memory.low": "0",
  "memory.high": "max",
  "io.weight": "default 100",
  "io.max": "",
  "cpu.idle": "0",
  "cpu.weight": "100",
  "cpu.max": "max 100000",
  "cpu.max.burst": "0",
  "cpuset.cpus": "",
  "rdma.max": "mlx5_0 hca_handle=max hca_object=max\nmlx5_1 hca_handle=max hca_object=max",
};
const IO_NONE = "rbps=max wbps=max riops=max wiops=max";

/** Writes as the kernel does (cgroup-v2.rst): replaces the value, or the pairs that are named in the line of the key. */
function written(state: State, { file, value }: Write): State {
  if (file === "cpu.idle" && value !== state["cpu.idle"])
    return { ...state, "cpu.idle": value, "cpu.weight": value === "1" ? "0" : "100" };
  if (file === "cpu.weight" && (state["cpu.idle"] === "1" || value === "0")) throw new Error("EINVAL");
  if (!isKeyed(file)) return { ...state, [file]: value.trim() };
  const key = lineKey(file, value);
  const lines = (state[file] ?? "").split("\n").filter(Boolean);
  const line = lines.find((each) => lineKey(file, each) === key) ?? (file === "io.max" ? `${key} ${IO_NONE}` : "");
  const pairs = new Map(line.split(" ").map((pair) => [pair.split("=")[0], pair]));
  if (value.includes("=")) for (const pair of value.split(" ").slice(1)) pairs.set(pair.split("=")[0], pair);
  const now = value.includes("=") ? [...pairs.values()].join(" ") : `default ${value.replace("default ", "")}`;
  const rest = lines.filter((each) => lineKey(file, each) !== key);
  return { ...state, [file]: [...rest, ...(now === `${key} ${IO_NONE}` ? [] : [now])].toSorted().join("\n") };
}

/** The kernel's rule, tg_set_cfs_bandwidth. */
function burstFits(state: State): boolean {
  const quota = Number(state["cpu.max"]?.split(" ")[0]);
  return Number.isNaN(quota) || Number(state["cpu.max.burst"]) <= quota;
}

const device = fc.record({ major: fc.constant(8n), minor: fc.bigInt(0n, 2n), rate: fc.bigInt(0n, 9n) });
const throttle = fc.array(device, { maxLength: 2 });
const some = { requiredKeys: [] };
const resources = fc.record(
  {
    pids: fc.record({ limit: fc.bigInt(1n, 9n) }, some),
    memory: fc.record({ limit: fc.bigInt(1n, 9n), reservation: fc.bigInt(1n, 9n) }, some),
    cpu: fc
      .record({ shares: fc.bigInt(2n, 9n), idle: fc.bigInt(0n, 1n), cpus: fc.constantFrom("0", "1-2") }, some)
      .chain((rest) =>
        fc
          .bigInt(1000n, 1999n)
          .chain((quota) => fc.bigInt(0n, quota).map((burst) => Object.assign({ quota, burst }, rest))),
      ),
    blockIO: fc.record(
      {
        weight: fc.integer({ min: 10, max: 1000 }),
        throttleReadBpsDevice: throttle,
        throttleWriteIOPSDevice: throttle,
      },
      some,
    ),
    rdma: fc.record({ mlx5_1: fc.record({ hcaHandles: fc.nat(9) }) }, some),
    unified: fc.record({ "memory.high": fc.constantFrom("1", "max"), "pids.max": fc.constant("77") }, some),
  },
  some,
);

function changes(of: LinuxResources, state: State): Change[] {
  return changesOf(settingsOf(of, testHost()), (file) => state[file]);
}

/** A job that was started with one of two resources and is then updated with the other. */
function updated(old: LinuxResources, update: LinuxResources): { readonly before: State; readonly all: Change[] } {
  const before = changes(old, NONE).reduce(written, NONE);
  return { before, all: changes(affected(merged(old, update, testHost()), update), before) };
}

test("an update that fails at any write leaves the group as it was, once its writes are undone", () => {
  fc.assert(
    fc.property(resources, resources, fc.nat(), (old, update, cut) => {
      const { before, all } = updated(old, update);
      const done = all.slice(0, cut % (all.length + 1));
      const failed = done.reduce(written, before);
      expect(
        done
          .toReversed()
          .flatMap(({ undo }) => undo)
          .reduce(written, failed),
      ).toEqual(before);
    }),
  );
});

test("the burst never exceeds the quota, neither while an update is written nor while it is undone", () => {
  fc.assert(
    fc.property(resources, resources, (old, update) => {
      const { before, all } = updated(old, update);
      let state = before;
      for (const write of [...all, ...all.toReversed().flatMap(({ undo }) => undo)]) {
        state = written(state, write);
        expect(burstFits(state)).toBe(true);
      }
    }),
  );
});

test("a file that holds one value is written once, with the last one; a file with a line for each device, once for each", () => {
  const update = {
    memory: { limit: 4096n },
    blockIO: {
      throttleReadBpsDevice: [
        { major: 8n, minor: 0n, rate: 1n },
        { major: 8n, minor: 16n, rate: 2n },
      ],
    },
    unified: { "memory.max": "8192", "memory.oom.group": "0" },
  };
  expect(changes(update, NONE).map(({ file, value }) => `${file} ${value}`)).toEqual([
    "io.max 8:0 rbps=1",
    "io.max 8:16 rbps=2",
    "memory.max 8192",
    "memory.oom.group 0",
  ]);
});

describe("a write is undone", () => {
  const undo = (file: string, value: string, state: State): string[] => {
    const [change] = changesOf([{ file, value, controller: "cpu", field: "x" }], (name) => state[name]);
    return (change?.undo ?? []).map((write) => `${write.file} ${write.value}`);
  };

  test.each<[string, string, State, string[]]>([
    ["memory.max", "1", { "memory.max": "max\n" }, ["memory.max max"]],
    ["cpuset.cpus", "1", { "cpuset.cpus": "\n" }, ["cpuset.cpus \n"]],
    ["io.max", "8:0 rbps=1", { "io.max": `8:16 ${IO_NONE}\n` }, [`io.max 8:0 ${IO_NONE}`]],
    ["io.max", "8:0 rbps=1", { "io.max": "8:0 rbps=7 wbps=max\n8:16 rbps=8\n" }, ["io.max 8:0 rbps=7 wbps=max"]],
    ["io.bfq.weight", "8:0 20", { "io.bfq.weight": "default 100\n" }, ["io.bfq.weight 8:0 default"]],
    ["io.weight", "20", { "io.weight": "default 100\n8:0 7\n" }, ["io.weight default 100"]],
    ["misc.max", "sev 1", { "misc.max": "sev max\n" }, ["misc.max sev max"]],
    ["cpu.idle", "1", { "cpu.idle": "0\n", "cpu.weight": "59\n" }, ["cpu.idle 0", "cpu.weight 59"]],
    ["cpu.idle", "0", { "cpu.idle": "1\n", "cpu.weight": "0\n" }, ["cpu.idle 1"]],
    ["cpu.weight", "59", { "cpu.idle": "1\n", "cpu.weight": "0\n" }, []],
    ["memory.pressure", "some 150000 1000000", { "memory.pressure": "some avg10=0.00\n" }, []],
    ["memory.reclaim", "1M", {}, []],
  ])("to %s, of %j over %j", (file, value, state, expected) => {
    expect(undo(file, value, state)).toEqual(expected);
  });
});
