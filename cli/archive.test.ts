import { createHash } from "node:crypto";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { BUCKET, credentials, servers } from "../src/worker/archive/testing.ts";
import { startHost } from "./testing.ts";

/** More than one part of an upload. */
const LINES = 1_500_000;

it("jobsd as it is built moves logs to S3, and streams them from there", async () => {
  const [s3rver] = servers;
  await using server = await s3rver?.start?.();
  credentials();
  const { AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY } = process.env;
  const flags = ["--archive", `s3://${BUCKET}/prod`, "--archive-endpoint", `http://127.0.0.1:${server?.port}`];
  await using host = await startHost(flags, { built: true, env: { AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY } });
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
