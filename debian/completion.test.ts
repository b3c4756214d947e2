import { spawnSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { program } from "../cli/daemon/jobsd.ts";
import { jobsctl } from "../cli/jobsctl.ts";
import { unless } from "../src/testing/root.ts";
import { testDirectory } from "../src/worker/testing/worker.ts";
import { bashCompletion } from "./completion.ts";

const noBash = spawnSync("bash", ["--version"]).status === 0 ? undefined : "it takes bash";
const JOBSD = bashCompletion(program("/", "1.2.3"));
const JOBSCTL = bashCompletion(jobsctl);

/** Returns what bash offers for the last of these words, as readline splits them, in a directory with a file and a job. */
function offered(script: string, ...words: readonly string[]): string[] {
  using directory = testDirectory();
  writeFileSync(join(directory.path, "ada.crt"), "");
  mkdirSync(join(directory.path, "bin"));
  writeFileSync(join(directory.path, "bin/jobsctl"), '#!/bin/sh\n[ "$*" = "list --quiet" ] && echo 01m8 01m9\n', {
    mode: 0o755,
  });
  const ask = `
    compopt() { :; }
    eval "$1"; shift
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
    _"$1"
    printf '%s\\n' "\${COMPREPLY[@]}"`;
  const { stdout, stderr } = spawnSync("bash", ["--norc", "-c", ask, "bash", script, ...words], {
    cwd: directory.path,
    encoding: "utf8",
    env: { PATH: `${directory.path}/bin:${process.env["PATH"]}` },
  });
  expect(stderr).toBe("");
  // readline shows once what is offered twice, as a program that is in two directories of the PATH.
  return [...new Set(stdout.split("\n").filter(Boolean))];
}

describe("completion in bash", unless(noBash), () => {
  it("offers the commands, each group once, and the verbs of a group", () => {
    const names = jobsctl.commands.flatMap(({ name, alias }) => [name.split(" ")[0] ?? "", alias ?? []].flat());
    expect(offered(JOBSCTL, "jobsctl", "").toSorted()).toEqual([...new Set(names)].toSorted());
    expect(offered(JOBSCTL, "jobsctl", "certs", "in")).toEqual(["init", "inspect"]);
  });

  it.each(jobsctl.commands)("offers the flags of $name, and no others", (command) => {
    const { name, flags, offline } = command;
    const expected = [...flags, ...(offline ? [] : jobsctl.flags)].map((flag) => `--${flag.name}`);
    expect(offered(JOBSCTL, "jobsctl", ...name.split(" "), "--").toSorted()).toEqual(
      [...expected, "--help"].toSorted(),
    );
  });

  it.each([
    ["words of a flag", ["list", "--output", ""], ["text", "json"]],
    ["words behind =", ["list", "--output", "=", "j"], ["json"]],
    ["words behind = when nothing is there yet", ["list", "--output", "="], ["text", "json"]],
    ["words of a short flag", ["list", "-o", "j"], ["json"]],
    ["files", ["--ca", "a"], ["ada.crt"]],
    ["nothing where only a person knows", ["start", "--memory", ""], []],
    ["files to a command that takes one", ["certs", "inspect", ""], ["ada.crt", "bin"]],
    ["ids of jobs", ["stop", "01"], ["01m8", "01m9"]],
    ["ids of jobs by an alias", ["logs", "01m9"], ["01m9"]],
    ["programs behind --", ["run", "--", "printen"], ["printenv"]],
    ["files to a job's program, and no flags of ours", ["run", "--", "cat", "ad"], ["ada.crt"]],
  ])("offers %s", (_what, words, expected) => {
    expect(offered(JOBSCTL, "jobsctl", ...words)).toEqual(expected);
  });

  it("offers jobsd's flags", () => {
    expect(offered(JOBSD, "jobsd", "--lis")).toEqual(["--listen"]);
    expect(offered(JOBSD, "jobsd", "--state", "s", "--log-keep", "n")).toEqual(["newest"]);
  });
});
