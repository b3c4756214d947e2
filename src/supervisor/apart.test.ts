import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import type { Part } from "../worker/model/isolation.ts";
import { isRoot, needsRoot, unless } from "../testing/root.ts";
import {
  CREDENTIALS,
  OWN,
  ROOTLESS,
  UNPRIVILEGED,
  compile,
  rig,
  unprivilegedRig,
  variants,
  without,
  type Rig,
  type Spec,
} from "./testing/rig.ts";

const isolated = variants.filter(({ mode }) => mode === "isolated");
const BARE = new Set<Part>(["no-new-privileges", "no-capabilities"]);

/** The version of Landlock that this kernel has; the sixth can keep signals in. */
function landlock(): number {
  const directory = mkdtempSync(join(tmpdir(), "landlock-"));
  try {
    const program = join(directory, "reaches");
    execFileSync("cc", ["-o", program, join(import.meta.dirname, "programs/reaches.c")]);
    return spawnSync(program, ["abi"]).status ?? 0;
  } finally {
    rmSync(directory, { recursive: true });
  }
}

const noScope = landlock() < 6 ? "this kernel's Landlock keeps no signals in" : undefined;

/** A job that tries all it can on its supervisor meets refusals alone, and its end is recorded. */
async function expectUnreached(it: Rig, spec: Spec, ...words: readonly string[]): Promise<void> {
  const { exit, job } = await it.run({ argv: [compile("reaches", it), ...words], ...spec });
  expect(job.output()).toBe("");
  expect(exit).toMatchObject({ cause: "none", code: 7, signal: 0, killed: 0 });
}

describe.each(isolated)("$build: what a job does not reach of a supervisor", (variant) => {
  test.each([
    ["with all that keeps it off", []],
    ["without the filter of all jobs", ["seccomp"]],
  ] as const)("that has its user, %s", async (_what, off) => {
    await using it = await rig(variant, { isolation: { wanted: without(...off) } });
    await expectUnreached(it, { ...OWN, oomScoreAdj: 300 });
  });

  test("that has its user, without root, in a user namespace", needsRoot, async () => {
    await using it = await unprivilegedRig(variant, { wanted: ROOTLESS });
    expect(it.spawner.lacking).toEqual(new Map());
    await expectUnreached(it, UNPRIVILEGED);
  });

  test(
    "that has its user, without root and without namespaces, signals among it",
    isRoot ? unless(noScope) : needsRoot,
    async () => {
      await using it = await unprivilegedRig(variant, { wanted: BARE });
      await expectUnreached(it, UNPRIVILEGED, "signals");
    },
  );

  test("that has another user, without namespaces", needsRoot, async () => {
    await using it = await rig(variant, { isolation: { wanted: BARE } });
    const { exit, job } = await it.run({
      argv: [compile("reaches", it), "signals"],
      credentials: { ...CREDENTIALS, uid: 54_321, gid: 54_321 }, // whose other processes, of which there are none, it may set
    });
    expect(job.output()).toBe("setpriority of a user\nioprio_set\n");
    expect(exit).toMatchObject({ cause: "none", code: 7, signal: 0, killed: 0 });
  });
});
