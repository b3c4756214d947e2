import { spawnSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { program } from "../cli/daemon/jobsd.ts";
import { flags } from "../cli/daemon/settings.ts";
import { jobsctl } from "../cli/jobsctl.ts";
import { unless } from "../src/testing/root.ts";
import { configurationPage, jobsctlPage, jobsdPage } from "./manual.ts";

const DATE = new Date(Date.UTC(2026, 10, 30));
const jobsd = program("/", "1.2.3");
const PAGES = [
  { name: "jobsctl(1)", of: jobsctl, page: jobsctlPage(jobsctl, DATE) },
  { name: "jobsd(8)", of: jobsd, page: jobsdPage(jobsd, DATE) },
];
const noMan = spawnSync("man", ["--version"]).status === 0 ? undefined : "it takes man-db";

/** Runs a program on a page; returns what it printed, and what it complained of. */
function format(page: string, command: string, ...args: string[]): { stdout: string; stderr: string } {
  const { stdout, stderr } = spawnSync(command, args, {
    input: page,
    encoding: "utf8",
    env: { ...process.env, LC_ALL: "C.UTF-8", MANWIDTH: "100", MANROFFSEQ: "" },
  });
  return { stdout, stderr };
}

describe.each(PAGES)("the manual page $name", ({ of, page }) => {
  it("has every command, and every flag of each with what it says of itself", unless(noMan), () => {
    const { stdout, stderr } = format(page, "man", "--warnings", "--no-hyphenation", "--no-justification", "-l", "-");
    expect(stderr).toBe("");
    const text = stdout.replace(/\s+/g, " ");
    for (const { name, alias, about, flags } of of.commands) {
      expect(text).toContain(`${of.name} ${name}`.trim());
      if (alias !== undefined) expect(text).toContain(`${alias} is the same.`);
      for (const line of [...about, ...flags.map((flag) => flag.about)]) expect(text).toContain(line);
      for (const flag of [...flags, ...of.flags])
        expect(text).toContain([`--${flag.name}`, flag.value].filter(Boolean).join(" "));
    }
  });
});

describe("the manual page jobsd.toml(5)", () => {
  const page = configurationPage(jobsd, flags, DATE);

  it("has every key, and no flag that is none", unless(noMan), () => {
    const { stdout, stderr } = format(page, "man", "--warnings", "--no-hyphenation", "--no-justification", "-l", "-");
    expect(stderr).toBe("");
    const text = stdout.replace(/\s+/g, " ");
    for (const { name, about, once } of flags)
      if (once) expect(text).not.toContain(`${name} = `);
      else expect(text).toContain(`${about}.`);
  });
});

it.each([...PAGES.map(({ page }) => page), configurationPage(jobsd, flags, DATE)])(
  "a manual page has no line that is taken for a macro, and no letter that roff would change",
  (page) => {
    for (const line of page.split("\n"))
      expect(line).toMatch(/^(?:\.(?:TH|SH|SS|TP|P|RS|RE|nf|fi|br)\b.*|[^.'][\x20-\x7e]*|)$/);
  },
);
