import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import type { Part } from "../worker/model/isolation.ts";
import { isRoot, needsRoot } from "../testing/root.ts";
import { CREDENTIALS, compile, hardened, rig, without, type Spec, type Variant } from "./testing/rig.ts";

/* Nothing that fork(2) and execve(2) hand on reaches a job: it has what a job of a plain daemon has. */

const directory = mkdtempSync(join(tmpdir(), "inherit-"));
execFileSync("chmod", ["755", directory]);
afterAll(() => rmSync(directory, { recursive: true }));
const PROGRAM = compile("attributes", { directory });

type Attributes = Readonly<Record<string, string>>;

function parse(text: string): Attributes {
  const lines = text.trimEnd().split("\n");
  return Object.fromEntries(lines.map((line) => [line.split(" ", 1)[0] ?? "", line.slice(line.indexOf(" ") + 1)]));
}

/** The names of those that differ. */
function differing(some: Attributes, others: Attributes): string[] {
  return Object.keys(some).filter((name) => some[name] !== others[name]);
}

const WITHOUT_ROOT = "setpriv --reuid=65534 --regid=65534 --clear-groups";

/** A prelude: the spawner goes on as the program `how` leaves it, and owns its directory. */
function started(how: string): string {
  const own = how.startsWith(WITHOUT_ROOT) ? 'chown 65534 "$(dirname "$0")"' : ":";
  return `if [ -z "$STARTED" ]; then ${own}; STARTED=1 exec ${how} sh "$0" "$@"; fi`;
}

const SAME: Spec = { credentials: { ...CREDENTIALS, change: false } };
/** The filter of system calls keeps a job from asking what it has. */
const UNFILTERED = without("seccomp");
const LOOSE = new Set<Part>([...UNFILTERED].filter((part) => !part.startsWith("no-")));

function isolationOf(
  { mode }: Variant,
  wanted: ReadonlySet<Part> | undefined = mode === "isolated" ? UNFILTERED : undefined,
): { readonly isolation?: { readonly wanted: ReadonlySet<Part> } } {
  return wanted ? { isolation: { wanted } } : {};
}

/** What a job's process has whose daemon was started by `how`. */
async function ofJob(variant: Variant, how: string, spec: Spec = {}, wanted?: ReadonlySet<Part>): Promise<Attributes> {
  await using it = await rig(variant, { prelude: started(how), ...isolationOf(variant, wanted) });
  const { job } = await it.run({ argv: [PROGRAM], ...spec });
  return parse(job.output());
}

/** What the spawner has its daemon ask for, here this process. */
const DAEMON_SLICE_NS = 500_000;
/** What only root can put back. */
const TAKE_ROOT = new Set(["nice", "loginuid"]);
const PLAIN = parse(execFileSync(PROGRAM, { encoding: "utf8" }));

describe.each(["realtime", "batch"])("a daemon that was started %s, with all attributes hostile", (mode) => {
  const how = `${PROGRAM} ${mode}`;
  const hostile = parse(
    execFileSync(PROGRAM, [mode, PROGRAM], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }),
  );
  const settable = differing(PLAIN, hostile);
  process.stdout.write(`attributes that this host lets a test change: ${settable.join(", ")}\n`);

  test("has attributes that a plain one has not", () => {
    expect(settable).toEqual(expect.arrayContaining(["Cpus_allowed_list", "personality", "SigIgn", "Umask"]));
  });

  describe.each(hardened)("$mode", (variant) => {
    test("gives a job none of them", async () => {
      const [plain, job] = [await ofJob(variant, "env"), await ofJob(variant, how)];
      expect(differing(plain, job).filter((name) => isRoot || !TAKE_ROOT.has(name))).toEqual([]);
      expect(job).toMatchObject({ "session-keyring": "0", "rlimit-4-soft": "0", policy: "0", SigIgn: "0".repeat(16) });
      expect(job["slice"]).not.toBe(String(DAEMON_SLICE_NS));
    });
  });

  test("gives a job no capability of its own where capabilities are not taken away", needsRoot, async () => {
    const [variant] = hardened;
    if (!variant) return;
    const [plain, job] = [await ofJob(variant, "env", {}, LOOSE), await ofJob(variant, how, {}, LOOSE)];
    expect(job).toEqual(plain);
    expect(job).toMatchObject({ CapEff: "0".repeat(16), CapAmb: "0".repeat(16), CapInh: "0".repeat(16) });
  });

  test("without root gives a job none but what takes root to put back", needsRoot, async () => {
    const [variant] = hardened;
    if (!variant) return;
    const own = `${WITHOUT_ROOT} ${how}`;
    const [plain, job] = [await ofJob(variant, `${WITHOUT_ROOT} env`, SAME), await ofJob(variant, own, SAME)];
    expect(differing(plain, job).filter((name) => !TAKE_ROOT.has(name))).toEqual([]);
  });
});

describe.each(hardened)("$mode", (variant) => {
  test("each job has a session keyring of its own", async () => {
    await using it = await rig(variant, isolationOf(variant));
    const rings = [];
    for (let n = 0; n < 3; n++) rings.push((await it.run({ argv: [PROGRAM, "keyring"] })).job.output());
    const own = execFileSync(PROGRAM, ["keyring"], { encoding: "utf8" });
    expect(new Set([own, ...rings]).size).toBe(4);
    expect(rings.map(Number).filter((ring) => ring > 0)).toHaveLength(3);
  });
});
