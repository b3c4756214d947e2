import { describe, expect, it } from "vitest";
import { ALIVE, ATTACKS, FILTERED } from "./attacks.ts";
import { NOTHING, type Target } from "./target.ts";

/**
 * What holds of jobs whether the daemon is root's or nobody's.
 *
 * @param target what is open when tests run
 */
export function holdsOf(target: () => Target, { withoutRoot = false } = {}): void {
  describe("a job that", () => {
    const all = [...ATTACKS, FILTERED];
    it.each(all.map((attack) => [attack.name, attack] as const))("%s gets nothing", async (name, attack) => {
      const { each, run, runAlone, seen, before } = target();
      const { nobody, root } = await each((user) => run(user, [], "sh", "-c", attack.script));
      expect({ nobody: nobody.stdout, root: root.stdout }).toEqual(NOTHING);
      if (!withoutRoot) {
        const flags = attack === FILTERED ? [] : ["--allow-user-namespaces"];
        expect((await runAlone(flags, "sh", "-c", attack.script)).stdout).toBe("");
      }
      expect(before[name]).not.toBe("");
      expect(await seen(ALIVE, attack)).toEqual({ alive: before["alive"], [name]: before[name] });
    });
  });

  describe("a start", () => {
    it("finds no descriptor of those above it, as a directory, a program or an interpreter", async () => {
      const { daemon, each, run } = target();
      const numbers = Array.from({ length: 6 }, (_, at) => at + 3);
      const path = (number: number): string => `/proc/self/fd/${number}`;
      for (const number of numbers)
        await daemon.put(`/programs/through-${number}`, `#!${path(number)}/bin/cat\nhost\n`, 0o755);
      const got: string[] = [];
      for (const number of numbers) {
        const { nobody, root } = await each((user) =>
          Promise.all([
            run(user, ["--cwd", path(number)], "/bin/ls"),
            run(user, [], `${path(number)}/bin/echo`, "host"),
            run(user, [], `/programs/through-${number}`),
          ]),
        );
        got.push(...[...nobody, ...root].map(({ stdout }) => stdout));
      }
      expect(got.join("")).toBe("");
    }, 300_000);
  });

  describe("a job has", () => {
    it("three descriptors, though the daemon was started with more", async () => {
      const { each, run, outside } = target();
      expect((await outside("ls /proc/$DAEMON/fd")).split("\n")).toEqual(expect.arrayContaining(["50", "251"]));
      const script = `for (0 .. 1023) { my $to = readlink "/proc/self/fd/$_"; print "$_ $to\\n" if $to }`;
      const { nobody, root } = await each((user) => run(user, [], "perl", "-e", script));
      for (const { stdout } of [nobody, root]) expect(stdout).toMatch(/^0 \/dev\/null\n1 pipe:.*\n2 pipe:.*\n$/);
    });

    it("nothing of the daemon's environment", async () => {
      const { each, run, outside, facts } = target();
      const its = (await outside("tr '\\0' '\\n' < /proc/$DAEMON/environ | cut -d= -f1")).split("\n");
      expect(its).toEqual(expect.arrayContaining(["LD_PRELOAD", "NODE_OPTIONS", "WORD"]));
      const script = "cut -z -d= -f1 /proc/self/environ | tr '\\0' '\\n'; grep libm /proc/self/maps";
      const { nobody, root } = await each((user) => run(user, [], "sh", "-c", script));
      const names = ["HOME", "LOGNAME", "PATH", "PWD", "USER", ...Object.keys(facts)].toSorted();
      for (const { stdout } of [nobody, root]) expect(stdout.trimEnd().split("\n").toSorted()).toEqual(names);
    });
  });
}
