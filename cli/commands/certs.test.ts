import { X509Certificate } from "node:crypto";
import { mkdir, mkdtempDisposable, readdir, readFile, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { unless } from "../../src/testing/root.ts";
import { shell, withoutOpenssl } from "../../src/x509/testing/openssl.ts";
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

describe("jobsctl certs", () => {
  it("makes a party's key and request, signs it and shows the certificate", async () => {
    const requested = await request({ name: "alice@example", out: join(dir, "alice"), bits: 2048 });
    expect((await stat(requested.key)).mode & 0o777).toBe(0o600);
    expect(formatRequest(requested).join("\n")).toContain(`jobsctl certs sign ${requested.csr}`);

    const signed = await sign({ csr: requested.csr, ca, role: "writer", days: 30, minBits: 2048 });
    expect(signed.crt).toBe(join(dir, "alice", "alice@example.crt"));
    expect((await stat(signed.crt)).mode & 0o777).toBe(0o644);
    expect(formatSign(signed).join("\n")).toMatch(/^role +writer$/m);

    const crt = new X509Certificate(await readFile(signed.crt));
    expect(crt.checkIssued(new X509Certificate(await readFile(join(ca, "ca.crt"))))).toBe(true);
    const described = await inspect({ file: signed.crt });
    expect(described).toMatchObject({
      subject: "CN=alice@example",
      issuer: "CN=jobs CA",
      role: "writer",
      daysLeft: 29,
    });
    expect(formatInspect(described).join("\n")).toMatch(/^subject +CN=alice@example$/m);
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

  it.each([undefined, "", "guest", "Writer"])("refuses the role %j, naming the right ones", async (role) => {
    await expect(sign({ csr: "a.csr", ca, role })).rejects.toThrow(/^--role: .*; reader, writer, admin or worker/);
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

describe("with what openssl has made", unless(withoutOpenssl), () => {
  /** A root, an intermediate CA of it, and requests that ask for a role. */
  const MAKE = `
    rsa() { openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$1.key"; chmod 600 "$1.key"; }
    for name in root mid ada; do rsa $name; done
    echo 'basicConstraints=critical,CA:TRUE' >ca.ext
    openssl req -x509 -key root.key -subj /CN=root -days 99 -out root.crt
    openssl req -new -key mid.key -subj /CN=mid -out mid.csr
    openssl x509 -req -in mid.csr -CA root.crt -CAkey root.key -CAcreateserial -days 99 -extfile ca.ext -out mid.crt
    cat mid.crt root.crt >both.crt
    for role in writer guest; do
      openssl req -new -key ada.key -subj /CN=ada -addext "1.2.840.10070.8.1=ASN1:UTF8String:$role" -out $role.csr
    done
    openssl req -new -key ada.key -subj /CN=ada -out plain.csr
    sed 's/CERTIFICATE REQUEST/NEW CERTIFICATE REQUEST/' writer.csr >new.csr
    openssl req -in writer.csr -outform DER -out der.csr
  `;
  let made: string;
  const file = (name: string) => join(made, name);
  beforeAll(async () => {
    made = join(dir, "openssl");
    await mkdir(made);
    await shell(MAKE, made);
  });

  it.each([
    ["writer.csr", "writer"],
    ["new.csr", "writer"],
    ["der.csr", "writer"],
    ["guest.csr", "malformed"],
  ])("inspect shows the role that %s asks for", async (csr, role) => {
    const described = await inspect({ file: file(csr) });
    expect(described).toMatchObject({ kind: "request", subject: "CN=ada", role });
    expect(formatInspect(described).join("\n")).toContain(
      `asks for    role ${role}; jobsctl certs sign decides by --role`,
    );
  });

  it("inspect shows no role of a request that asks for none", async () => {
    expect(await inspect({ file: file("plain.csr") })).not.toHaveProperty("role");
  });

  it.each(["writer.csr", "new.csr", "der.csr"])("sign says of %s that its role was not taken over", async (csr) => {
    const signed = await sign({ csr: file(csr), ca, role: "reader", minBits: 2048, force: true });
    expect(signed).toMatchObject({ asked: "writer", certificate: { role: "reader" } });
    expect(formatSign(signed).join("\n")).toMatch(
      /\nThe request asks for the role writer, which was not taken over: --role decides, and gave reader\.$/,
    );
    const plain = await sign({ csr: file("plain.csr"), ca, role: "reader", minBits: 2048, force: true });
    expect(formatSign(plain).join("\n")).not.toContain("not taken over");
  });

  it.each(["mid.crt", "both.crt"])("sign with an intermediate CA, given as %s, writes the chain", async (crt) => {
    const authority = { ca: file(crt), caKey: file("mid.key") };
    const options = { role: "writer", minBits: 2048, out: file("chain.crt"), force: true };
    const signed = await sign({ csr: file("plain.csr"), ...authority, ...options });
    await shell("openssl verify -CAfile root.crt -untrusted chain.crt chain.crt", made);
    const described = await inspect({ file: signed.crt });
    expect(described).toMatchObject({ subject: "CN=ada", issuer: "CN=mid", usages: ["clientAuth"], chain: ["CN=mid"] });
    expect(formatInspect(described).join("\n")).toMatch(/^behind it +CN=mid$/m);
  });
});
