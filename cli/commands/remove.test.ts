import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type Host, startHost } from "../testing/host.ts";

let host: Host;
beforeAll(async () => {
  host = await startHost();
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
});

async function started(...words: readonly string[]): Promise<string> {
  return (await host.jobs(["start", ...words])).stdout.trim();
}

async function ended(...words: readonly string[]): Promise<string> {
  const id = await started(...words);
  await host.jobs(["wait", id]);
  return id;
}

it("rm removes the jobs that have ended, and says of each other why not", async () => {
  const [one, two, runs] = [await ended("--", "true"), await ended("--", "true"), await started("--", "sleep", "1000")];
  const removed = await host.jobs(["rm", one, runs, "nothing", two]);
  expect(removed).toMatchObject({ code: 1, stdout: `${one}\n${two}\n` });
  expect(removed.stderr).toContain(`job ${runs} has not ended, it is running: stop it first`);
  expect(removed.stderr).toContain('there is no job "nothing"');
  expect(await host.jobs(["query", one])).toMatchObject({
    code: 1,
    stderr: expect.stringContaining("there is no job"),
  });
  await host.jobs(["stop", runs]);
  expect(await host.jobs(["rm", "--output", "json", runs])).toEqual({
    code: 0,
    stdout: `{\n  "jobId": "${runs}"\n}\n`,
    stderr: "",
  });
  expect(await host.jobs(["list", "-q"])).toMatchObject({ stdout: "" });
});

it("prune says which jobs it would remove, removes them and says how many, as text and as JSON; the audit log has it", async () => {
  const bad = await ended("-l", "set=a", "--", "false");
  const killed = await ended("-l", "set=a", "--", "sh", "-c", "kill -9 $$");
  const other = await ended("-l", "set=b", "--", "true");
  const dry = await host.jobs(["prune", "--label", "set=a", "--dry-run"]);
  expect(dry).toEqual({ code: 0, stdout: `${killed}\n${bad}\n`, stderr: "jobsctl: 2 jobs would be removed\n" });
  const json = await host.jobs(["prune", "--state", "signalled,lost", "-o", "json"]);
  expect(JSON.parse(json.stdout)).toEqual({ jobIds: [killed] });
  expect(await host.jobs(["prune", "--older-than", "1d"])).toMatchObject({ code: 0, stdout: "0 jobs removed\n" });
  expect(await host.jobs(["prune", "--state", "ended"])).toMatchObject({ code: 0, stdout: "2 jobs removed\n" });
  expect(await host.jobs(["rm", other])).toMatchObject({ code: 1 });
  const audit = await readFile(join(host.dir, "state/audit.jsonl"), "utf8");
  const records = audit.split("\n").flatMap((line) => (line.includes("Prune") ? [JSON.parse(line) as object] : []));
  const asked = { stage: "end", code: "OK", request: { prune: { labels: 1, dryRun: true } }, pruned: 2 };
  expect(records).toContainEqual(expect.objectContaining(asked));
});

it.each([
  [["prune"], "nothing says which jobs"],
  [["prune", "--dry-run", "--with-archive"], "nothing says which jobs"],
  [["prune", "--state", "running"], "--state running: only jobs that have ended are removed"],
  [["prune", "--state", "gone"], "--state"],
  [["prune", "--older-than", "week"], "--older-than"],
  [["prune", "--label", "x"], "--label"],
])("%j is refused before a worker is asked", async (words, why) => {
  expect(await host.jobs(words)).toMatchObject({ code: 125, stdout: "", stderr: expect.stringContaining(why) });
});

it("copies in an archive cannot be removed where there is none", async () => {
  const id = await ended("--", "true");
  for (const words of [
    ["rm", "--with-archive", id],
    ["prune", "--older-than", "0s", "--with-archive"],
  ])
    expect(await host.jobs(words)).toMatchObject({ code: 1, stderr: expect.stringContaining("has no archive") });
  expect(await host.jobs(["list", "-q"])).toMatchObject({ stdout: `${id}\n` });
});
