import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { mkdir, mkdtempDisposable, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { BUCKET, credentials, servers } from "../../src/worker/archive/testing/s3.ts";
import { startHost } from "../testing/host.ts";

/** More than one part of an upload. */
const LINES = 1_500_000;

it("jobsd moves logs to S3, and streams them from there", async () => {
  const [s3rver] = servers;
  await using server = await s3rver?.start?.();
  credentials();
  const { AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY } = process.env;
  const flags = ["--archive", `s3://${BUCKET}/prod`, "--archive-endpoint", `http://127.0.0.1:${server?.port}`];
  await using host = await startHost(flags, { env: { AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY } });
  const id = await host.start("seq", String(LINES));
  await host.jobs(["wait", id]);
  while (!/^log: +archived/m.test((await host.jobs(["query", id])).stdout));
  const files = readdirSync(join(host.dir, "state", "jobs", id));
  expect(files.filter((name) => /^(output|index)/.test(name))).toEqual([]);
  const { code, stdout, stderr } = await host.jobs(["stream", id]);
  const expected = Array.from({ length: LINES }, (_, i) => `${i + 1}\n`).join("");
  const digest = (text: string): string => createHash("sha256").update(text).digest("hex");
  expect({ code, stderr, digest: digest(stdout) }).toEqual({ code: 0, stderr: "", digest: digest(expected) });
});

it("jobsd takes nothing for S3 from the directory that it is run in, where HOME is empty", async () => {
  await using cwd = await mkdtempDisposable(join(tmpdir(), "jobs-cwd-"));
  const [taken, log] = [join(cwd.path, "taken"), join(cwd.path, "log")];
  await mkdir(join(cwd.path, ".aws"));
  for (const name of ["config", "credentials"]) {
    await writeFile(join(cwd.path, ".aws", name), `[default]\ncredential_process = touch ${taken}\n`);
  }
  const flags = ["--archive", `s3://${BUCKET}/prod`, "--archive-endpoint", "http://127.0.0.1:1"];
  const env = { HOME: "", AWS_EC2_METADATA_DISABLED: "true" };
  await using host = await startHost(flags, { env, cwd: cwd.path, stderr: log });
  await host.jobs(["wait", await host.start("echo", "hello")]);
  await expect.poll(() => readFileSync(log, "utf8"), { timeout: 30_000 }).toMatch(/archive/);
  expect(existsSync(taken)).toBe(false);
});
