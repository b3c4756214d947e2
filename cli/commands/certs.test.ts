import { X509Certificate } from "node:crypto";
import { mkdtempDisposable, readdir, readFile, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { formatInspect, formatRequest, formatSign, init, inspect, request, sign } from "./certs.ts";

let dir: string;
let ca: string;
beforeAll(async () => {
  const temporary = await mkdtempDisposable(join(tmpdir(), "jobs-certs-"));
  dir = temporary.path;
  ca = join(dir, "ca");
  await init({ out: ca, bits: 2048 });
  return () => temporary.remove();
});

describe("jobs certs", () => {
  it("makes a party's key and request, signs it and shows the certificate", async () => {
    const requested = await request({ name: "alice@example", out: join(dir, "alice"), bits: 2048 });
    expect((await stat(requested.key)).mode & 0o777).toBe(0o600);
    expect(formatRequest(requested)).toContain(`jobs certs sign ${requested.csr}`);

    const signed = await sign({ csr: requested.csr, ca, role: "writer", days: 30, minBits: 2048 });
    expect(signed.crt).toBe(join(dir, "alice", "alice@example.crt"));
    expect((await stat(signed.crt)).mode & 0o777).toBe(0o644);
    expect(formatSign(signed)).toMatch(/^role +writer$/m);

    const crt = new X509Certificate(await readFile(signed.crt));
    expect(crt.checkIssued(new X509Certificate(await readFile(join(ca, "ca.crt"))))).toBe(true);
    const described = await inspect({ file: signed.crt });
    expect(described).toMatchObject({
      subject: "CN=alice@example",
      issuer: "CN=jobs CA",
      role: "writer",
      daysLeft: 29,
    });
    expect(formatInspect(described)).toMatch(/^subject +CN=alice@example$/m);
    expect(JSON.parse(JSON.stringify(described))).toEqual(described);
  });

  it("signs a worker's request for the hosts it asks for, with the CA named by its files", async () => {
    const { csr } = await request({ name: "w1", out: join(dir, "w1"), hosts: ["w1.internal"], bits: 2048 });
    const out = join(dir, "new/w1.crt");
    const files = { ca: join(ca, "ca.crt"), caKey: join(ca, "ca.key") };
    const { certificate } = await sign({ csr, ...files, role: "worker", out, minBits: 2048 });
    expect(certificate).toMatchObject({ hosts: ["w1.internal"], usages: ["serverAuth"] });
    expect(certificate.role).toBeUndefined();
  });

  it.each([undefined, "", "admin", "Writer"])("refuses the role %j, naming the right ones", async (role) => {
    await expect(sign({ csr: "a.csr", ca, role })).rejects.toThrow(/^--role: .*; reader, writer or worker/);
  });

  it("refuses a CA's key that is not the certificate's", async () => {
    const { csr } = await request({ name: "bob", out: join(dir, "bob"), bits: 2048 });
    const caKey = join(ca, "writer.key");
    await expect(sign({ csr, ca, caKey, role: "reader", minBits: 2048 })).rejects.toThrow(
      `${caKey}: is not the key of ${join(ca, "ca.crt")}`,
    );
    expect(await readdir(join(dir, "bob"))).toEqual(["bob.csr", "bob.key"]);
  });

  it("replaces neither a key nor a certificate unless forced", async () => {
    const options = { name: "eve", out: join(dir, "eve"), bits: 2048 };
    const { key, csr } = await request(options);
    const before = await readFile(key, "utf8");
    await expect(request(options)).rejects.toThrow(`${key}: already exists; --force to replace it`);
    expect(await readFile(key, "utf8")).toBe(before);
    const signing = { csr, ca, role: "reader", minBits: 2048 };
    const { crt } = await sign(signing);
    await expect(sign(signing)).rejects.toThrow(`${crt}: already exists`);
    await expect(sign({ ...signing, force: true })).resolves.toMatchObject({ crt });
  });

  it.each(["", "..", "../../etc/passwd", "-x", "a b", "a\0", "x".repeat(65)])(
    "refuses the name %j and makes nothing",
    async (name) => {
      await expect(request({ name, out: join(dir, "none"), bits: 2048 })).rejects.toThrow("name:");
      expect(await readdir(dir)).not.toContain("none");
    },
  );
});
