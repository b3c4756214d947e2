import { expect, test } from "vitest";
import { byteLengthOf, bytesOf } from "../../os/bytes.ts";
import type { Job } from "../model/job.ts";
import { JOB } from "../testing/worker.ts";
import { brief } from "./brief.ts";

function job(id: string, more: Partial<Job>): Job {
  return { ...JOB, id, ...more };
}

test("a job without long fields is unchanged", () => {
  const short = job("a", { args: ["x".repeat(4000)], envNames: ["A"] });
  expect(brief(short)).toBe(short);
});

test.each([
  ["one long argument", ["x".repeat(5000)], ["x".repeat(4096)]],
  ["many arguments", Array.from({ length: 5000 }, () => "y"), Array.from({ length: 2048 }, () => "y")],
  ["empty arguments", Array.from({ length: 200_000 }, () => ""), Array.from({ length: 4096 }, () => "")],
  ["characters of three bytes", ["€".repeat(4096)], ["€".repeat(1365)]],
  ["characters of two units", ["😀".repeat(4096)], ["😀".repeat(1024)]],
  ["bytes that are no text", ["\udcff".repeat(5000)], ["\udcff".repeat(4096)]],
])("of %s the first 4 KiB stay, and the field is named as cut", (_, args, first) => {
  const found = brief(job("a", { args }));
  expect(found.args).toEqual(first);
  expect(found.cut).toEqual(["args"]);
});

test("every field that may be long is cut alike", () => {
  const texts = Array.from({ length: 1000 }, (_, i) => `${i}${"z".repeat(100)}`);
  const found = brief(
    job("a", {
      command: `/${"c".repeat(100_000)}`,
      args: texts,
      envNames: texts,
      cwd: `/${"d".repeat(100_000)}`,
      warnings: texts,
      limits: new Map(texts.map((text) => [text, text])),
    }),
  );
  expect(found.cut).toEqual(["command", "args", "envNames", "cwd", "warnings", "limits"]);
  expect(byteLengthOf(JSON.stringify({ ...found, limits: [...found.limits] }))).toBeLessThan(100_000);
  for (const text of [found.command, found.cwd]) expect(bytesOf(text)).toHaveLength(4096);
});
