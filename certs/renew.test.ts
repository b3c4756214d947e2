import { execFile } from "node:child_process";
import { createPrivateKey, X509Certificate } from "node:crypto";
import { appendFile, mkdtempDisposable, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { beforeAll, describe, expect, it } from "vitest";
import { issueAll } from "./issue.ts";
import { register } from "./list.ts";
import { renew } from "./renew.ts";
import { revoke } from "./revoke.ts";

let dir: string;
/** A CA's directory, of which each test has a copy: keys take long to make. */
let made: string;
beforeAll(async () => {
  const temporary = await mkdtempDisposable(join(tmpdir(), "jobs-renew-"));
  dir = temporary.path;
  made = join(dir, "made");
  await issueAll({ out: made, bits: 2048 });
  return () => temporary.remove();
});

let copies = 0;
async function copy(): Promise<string> {
  const to = join(dir, `ca-${copies++}`);
  await promisify(execFile)("cp", ["-a", made, to]);
  return to;
}

async function certificateAt(...path: readonly string[]): Promise<X509Certificate> {
  return new X509Certificate(await readFile(join(...path)));
}

describe("a certificate that is renewed", () => {
  it("has another serial number and life, and all else as it was: key, subject, hosts, role", async () => {
    const ca = await copy();
    for (const name of ["worker", "writer"]) {
      const file = join(ca, `${name}.crt`);
      const before = await certificateAt(file);
      const { certificate, ...renewed } = await renew({ file, ca, days: 7 });
      const after = await certificateAt(file);
      expect(renewed).toEqual({ crt: file, before: before.serialNumber });
      for (const field of ["subject", "subjectAltName", "keyUsage", "issuer"] as const)
        expect(after[field]).toEqual(before[field]);
      expect(after.publicKey.equals(before.publicKey)).toBe(true);
      expect(after.serialNumber).not.toBe(before.serialNumber);
      expect(certificate).toMatchObject({ serial: after.serialNumber, daysLeft: 6 });
    }
    expect(await readFile(join(ca, "writer.crt"), "utf8")).toContain("BEGIN CERTIFICATE");
    expect((await register(ca)).certificates).toHaveLength(5);
  });

  it("has a new key where that is wanted, in place of its own and of no other", async () => {
    const ca = await copy();
    const [file, keyFile] = [join(ca, "writer.crt"), join(ca, "writer.key")];
    const before = await certificateAt(file);
    expect(await renew({ file, ca, newKey: true })).toMatchObject({ key: keyFile, certificate: { role: "writer" } });
    const after = await certificateAt(file);
    expect(after.publicKey.equals(before.publicKey)).toBe(false);
    expect(after.checkPrivateKey(createPrivateKey(await readFile(keyFile)))).toBe(true);
    expect((await stat(keyFile)).mode & 0o777).toBe(0o600);
    await writeFile(keyFile, await readFile(join(ca, "reader.key")));
    await expect(renew({ file, ca, newKey: true })).rejects.toThrow("is the key of another certificate; --force");
    await rm(keyFile);
    expect(await renew({ file, ca, newKey: true })).toMatchObject({ key: keyFile });
  });

  it("is the file that a symbolic link leads to, and the link stays", async () => {
    const ca = await copy();
    await symlink("writer.crt", join(ca, "current"));
    expect(await renew({ file: join(ca, "current"), ca })).toMatchObject({ crt: join(ca, "writer.crt") });
  });

  it("may be signed by the CA that follows its own, where that is said", async () => {
    const [old, young] = [await copy(), join(dir, "young")];
    await issueAll({ out: young, bits: 2048 });
    for (const ca of [old, young]) await revoke({ certificate: join(ca, "reader.crt"), ca });
    const options = { file: join(old, "writer.crt"), ca: young, out: join(young, "renewed.crt") };
    await expect(renew(options)).rejects.toThrow("and not by this CA; where that CA is to be followed by this one");
    await renew({ ...options, oldCa: old });
    const signed = await certificateAt(young, "renewed.crt");
    expect(signed.verify((await certificateAt(young, "ca.crt")).publicKey)).toBe(true);
    expect(signed.subject).toBe("CN=writer");
  });

  it.each<[string, (old: string) => Promise<unknown>, RegExp]>([
    ["has revoked", () => Promise.resolve(), /writer\.crt: was revoked at .* \(keyCompromise\)/],
    [
      "has on its list alone, its index lost",
      (old) => rm(join(old, "ca.index")),
      /writer\.crt: was revoked: .*ca\.crl/,
    ],
    [
      "may have revoked, as its index is lost and its list damaged",
      async (old) => (await rm(join(old, "ca.index")), await writeFile(join(old, "ca.crl"), "hello")),
      /ca\.crl: is no list of revoked certificates.*; move it away/,
    ],
  ])("is none that the CA which signed it %s, whichever CA is to renew it", async (_, prepare, message) => {
    const [old, young] = [await copy(), await copy()];
    await issueAll({ out: young, bits: 2048, force: true });
    const [file, out] = [join(old, "writer.crt"), join(young, "renewed.crt")];
    await revoke({ certificate: file, ca: old, reason: "keyCompromise" });
    await prepare(old);
    await expect(renew({ file, ca: young, oldCa: join(old, "ca.crt"), out })).rejects.toThrow(message);
    await expect(renew({ file, ca: old, out })).rejects.toThrow(message);
    expect(await readdir(young)).not.toContain("renewed.crt");
  });

  it.each<[string, (ca: string) => Promise<string>, RegExp]>([
    [
      "that is revoked",
      async (ca) => (await revoke({ certificate: join(ca, "writer.crt"), ca }), "writer.crt"),
      /was revoked/,
    ],
    ["of a CA", () => Promise.resolve("ca.crt"), /is a CA's certificate; make another CA/],
    [
      "with its key in the same file, which would be gone",
      async (ca) => {
        await appendFile(join(ca, "writer.crt"), await readFile(join(ca, "writer.key")));
        return "writer.crt";
      },
      /holds a private key, too, and would be replaced; give --out/,
    ],
  ])("is none %s", async (_, prepare, message) => {
    const ca = await copy();
    const name = await prepare(ca);
    const before = await readFile(join(ca, name));
    await expect(renew({ file: join(ca, name), ca })).rejects.toThrow(message);
    expect(await readFile(join(ca, name))).toEqual(before);
  });
});
