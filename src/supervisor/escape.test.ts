import { chmodSync, chownSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { PARTS, isNamespace, type Part } from "../worker/model/isolation.ts";
import { needsRoot } from "../testing/root.ts";
import { OWN, UNPRIVILEGED, inFlight, rig, without, type Rig, type Spec, type Variant } from "./testing/rig.ts";

/* A job stands in its own mounts: no path leads it to a descriptor, a root or a directory of those who started it. */

const DESCRIPTORS = Array.from({ length: 65 }, (_, number) => number);
const VARIANT: Variant = { mode: "isolated", build: "hardened" };

/** The spawner's directory is its own. */
const WITHOUT_ROOT = `if [ $(id -u) = 0 ]; then
  chown 65534 "$(dirname "$0")"
  exec setpriv --reuid=65534 --regid=65534 --clear-groups sh "$0" "$@"
fi`;

const NAMESPACES = PARTS.filter(isNamespace);

interface Who {
  readonly name: string;
  readonly spec: Spec;
  readonly off: readonly Part[];
  readonly rootless: boolean;
}

/** Who a job runs as, and what its daemon is. */
const WHO: readonly Who[] = [
  { name: "nobody", spec: {}, off: [], rootless: false },
  { name: "root", spec: OWN, off: [], rootless: false },
  { name: "nobody, no pid namespace", spec: {}, off: ["pid"], rootless: false },
  { name: "root, no pid namespace", spec: OWN, off: ["pid"], rootless: false },
  { name: "a rootless daemon", spec: UNPRIVILEGED, off: ["cgroup"], rootless: true },
  { name: "a rootless daemon, no pid namespace", spec: UNPRIVILEGED, off: ["cgroup", "pid"], rootless: true },
  { name: "a rootless daemon, no namespaces", spec: UNPRIVILEGED, off: NAMESPACES, rootless: true },
];

/** A rig whose jobs' directories are the spawner's to write. */
async function open({ off, rootless }: Who): Promise<Rig & { readonly place: string }> {
  const place = mkdtempSync(join(tmpdir(), "escape-"));
  const jobs = join(place, "jobs");
  mkdirSync(jobs);
  chmodSync(place, 0o755);
  const wanted = without(...off);
  if (rootless) {
    chownSync(jobs, 65534, 65534);
    if (!off.includes("user")) wanted.add("user");
  }
  const it = await rig(VARIANT, { jobs, isolation: { wanted }, prelude: rootless ? WITHOUT_ROOT : "" });
  return {
    ...it,
    place,
    async [Symbol.asyncDispose]() {
      await it[Symbol.asyncDispose]();
      rmSync(place, { recursive: true });
    },
  };
}

/** What /proc has of processes that are not the job: its supervisor, the spawner, the daemon. */
function others(it: Rig): string[] {
  return ["1", it.pid(), process.pid].map((pid) => `/proc/${pid}`);
}

/** The ways to descriptor `number`, of the job before its exec and of those above it; links among them. */
function waysTo(number: number, it: Rig & { readonly place: string }): string[] {
  const link = join(it.place, `link-${number}`);
  symlinkSync(`/proc/self/fd/${number}`, link);
  return [
    ...["/proc/self", "/proc/thread-self", ...others(it)].map((of) => `${of}/fd/${number}`),
    `/dev/fd/${number}`,
    link,
  ];
}

/** The starts that were not refused. */
async function accepted(it: Rig, specs: readonly (readonly [string, Spec])[]): Promise<string[]> {
  const through: string[] = [];
  await inFlight(specs.length, async (n) => {
    const [name, spec] = specs[n] ?? ["", {}];
    const job = await it.start(spec).catch(() => undefined);
    if (!job) return;
    through.push(name);
    await job.ended();
  });
  return through;
}

/** A script whose interpreter is at `path`. */
function scriptOf(path: string, name: string): string {
  writeFileSync(name, `#!${path}\n`, { mode: 0o755 });
  return name;
}

describe.each(WHO)("a job of $name", needsRoot, (who) => {
  test("gets no descriptor of those above it as its directory, its program or its interpreter", async () => {
    await using it = await open(who);
    await it.run({ ...who.spec, script: "true" });
    const ways = DESCRIPTORS.flatMap((number) => waysTo(number, it));
    const own = "/proc/self/root";
    const places = [own, ...ways, ...others(it).flatMap((of) => [`${of}/root`, `${of}/cwd`])];
    const specs = places.flatMap((path, n): (readonly [string, Spec])[] => [
      [`cwd ${path}`, { ...who.spec, cwd: path, argv: ["/bin/true"] }],
      [`program ${path}`, { ...who.spec, argv: [`${path}/bin/true`] }],
      [`interpreter ${path}`, { ...who.spec, argv: [scriptOf(`${path}/bin/true`, join(it.place, `script-${n}`))] }],
    ]);
    expect((await accepted(it, specs)).toSorted()).toEqual([`cwd ${own}`, `interpreter ${own}`, `program ${own}`]);
  });

  test("reaches none of them while it runs", async () => {
    await using it = await open(who);
    await it.run({ ...who.spec, script: "true" });
    const script = `for of in ${others(it).join(" ")} /proc/$PPID /proc/self /proc/thread-self; do
        for number in $(seq 3 64); do [ -e $of/fd/$number ] && echo $of/fd/$number; done
      done
      for of in ${others(it).join(" ")} /proc/$PPID; do
        for name in fd/0 fd/1 fd/2 root cwd exe ns/mnt ns/user ns/pid; do [ -e $of/$name ] && echo $of/$name; done
        for name in environ maps mem; do (: < $of/$name) 2> /dev/null && echo $of/$name; done
      done
      true`;
    const { job } = await it.run({ ...who.spec, script });
    expect(job.output()).toBe("");
  });

  test("does not find the directory of its daemon as its own", async () => {
    await using it = await open(who);
    expect((await it.run({ ...who.spec, argv: ["/bin/pwd"], cwd: "/proc/self/cwd" })).job.output()).toBe("/\n");
  });
});
