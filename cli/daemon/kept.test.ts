import {
  existsSync,
  mkdtempSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { isRoot, needsRoot } from "../../src/testing/root.ts";
import { until } from "../../src/testing/processes.ts";
import { placeOf } from "./kept.ts";
import { launch, startHost } from "../testing/host.ts";

function testDirectory(): Disposable & { readonly path: string } {
  const path = mkdtempSync(join(tmpdir(), "jobs-kept-"));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true }) };
}

test("a key's place is its directory, where that holds keys and certificates alone, and else the key", () => {
  using directory = testDirectory();
  const key = join(directory.path, "tls.key");
  writeFileSync(key, "");
  for (const name of ["tls.key.new", "ca.crt", "chain.pem"]) writeFileSync(join(directory.path, name), "");
  expect(placeOf(key)).toEqual({ paths: [directory.path] });
  writeFileSync(join(directory.path, "notes"), "");
  expect(placeOf(key)).toEqual({ paths: [key], shared: directory.path });
});

test("a log's place is its directory, where that holds older files of the log alone, also before the log is there", () => {
  using directory = testDirectory();
  writeFileSync(join(directory.path, "audit.jsonl.1"), "");
  expect(placeOf(join(directory.path, "audit.jsonl"))).toEqual({ paths: [directory.path] });
});

test("the place of a link is that of each name on its way", () => {
  using directory = testDirectory();
  // As Kubernetes mounts a secret.
  const volume = join(directory.path, "volume");
  const archive = join(directory.path, "archive");
  for (const path of [volume, join(volume, "..2026"), archive]) mkdirSync(path);
  symlinkSync("..2026", join(volume, "..data"));
  symlinkSync("..data/tls.key", join(volume, "tls.key"));
  symlinkSync("../../archive/key-2.pem", join(volume, "..2026/tls.key"));
  writeFileSync(join(archive, "key-2.pem"), "");
  expect(placeOf(join(volume, "tls.key"))).toEqual({ paths: [volume, join(volume, "..data"), archive] });
});

test(
  "a job of root reads no key that is renewed while it runs, and puts no link in a certificate's place",
  needsRoot,
  async () => {
    await using host = await startHost(["--allow-root"]);
    renameSync(host.file("ca.crt"), host.file("ca-1.crt"));
    symlinkSync("ca-1.crt", host.file("ca.crt"));
    await host.crash();
    const [begun, go] = [join(host.dir, "begun"), join(host.dir, "go")];
    const script = `: > ${begun}; while [ ! -e ${go} ]; do sleep 0.05; done
    cat ${host.file("worker.key")}; ls ${host.file("")}; ln -sf /etc/hostname ${host.file("ca.crt")} && echo replaced`;
    const job = host.launch(["run", "--user", "root", "--", "sh", "-c", script]);
    await until(() => existsSync(begun), "the job runs");
    writeFileSync(host.file("worker.key.new"), readFileSync(host.file("worker.key")), { mode: 0o600 });
    renameSync(host.file("worker.key.new"), host.file("worker.key"));
    writeFileSync(go, "");
    const { stdout, stderr } = await job.ended;
    expect(stdout).toBe("");
    expect(stderr).toMatch(/worker\.key.*(Permission denied|No such file)/);
  },
);

test("a key beside other files is told by jobsd --check, where jobs can have the daemon's user", async () => {
  using directory = testDirectory();
  const key = join(directory.path, "tls.key");
  for (const path of [key, join(directory.path, "notes")]) writeFileSync(path, "");
  const told = async (...flags: readonly string[]): Promise<string> =>
    (await launch("jobsd", ["--check", "--key", key, ...flags]).ended).stdout;
  const shared = `${directory.path} holds other files, too`;
  expect(await told(...(isRoot ? ["--allow-root"] : []))).toContain(shared);
  expect(await told("--state", directory.path)).not.toContain(shared);
  if (isRoot) expect(await told()).not.toContain(shared);
});
