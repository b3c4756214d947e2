import "reflect-metadata";
import { createPublicKey, createHash, type KeyObject } from "node:crypto";
import { mkdtempDisposable, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Extension, X509CertificateGenerator } from "@peculiar/x509";
import { beforeAll, describe, expect, it } from "vitest";
import { describe as read, format, inspectFile } from "./inspect.ts";
import { generateKey, keyToPem, SIGNING, toCryptoKey } from "./key.ts";
import { ROLE_OID } from "./profile.ts";
import { createRequest } from "./request.ts";

let key: KeyObject;
beforeAll(async () => {
  key = await generateKey(2048);
});

async function certificate(cn: string, extensions: Extension[] = []): Promise<string> {
  const made = await X509CertificateGenerator.createSelfSigned({
    name: [{ CN: [cn] }],
    keys: { privateKey: await toCryptoKey(key, "sign"), publicKey: await toCryptoKey(createPublicKey(key), "verify") },
    signingAlgorithm: SIGNING,
    notBefore: new Date("2026-01-01T00:00:00Z"),
    notAfter: new Date("2026-01-31T00:00:00Z"),
    extensions,
  });
  return made.toString("pem");
}

async function role(...valuesHex: string[]): Promise<string | undefined> {
  const extensions = valuesHex.map((value) => new Extension(ROLE_OID, false, Buffer.from(value, "hex")));
  return read(await certificate("x", extensions), "x.crt").role;
}

const hex = (text: string) => Buffer.from(text).toString("hex");

describe("inspecting a certificate", () => {
  it("tells who, by whom, for how long and with what key", async () => {
    const pem = await certificate("someone");
    const now = new Date("2026-01-20T12:00:00Z");
    const der = Buffer.from(pem.replaceAll(/-----.*-----|\s/g, ""), "base64");
    const digest = createHash("sha256").update(der).digest("hex").toUpperCase();
    expect(read(pem, "a.crt", now)).toMatchObject({
      kind: "certificate",
      subject: "CN=someone",
      issuer: "CN=someone",
      fingerprint: digest.replaceAll(/..(?!$)/g, "$&:"),
      notBefore: "2026-01-01T00:00:00.000Z",
      notAfter: "2026-01-31T00:00:00.000Z",
      daysLeft: 10,
      ca: false,
      hosts: [],
      usages: [],
      key: { type: "rsa", bits: 2048 },
    });
    expect(format(read(pem, "a.crt", now)).join("\n")).toContain("2026-01-31T00:00:00.000Z, 10 days left\n");
    expect(format(read(pem, "a.crt", new Date("2026-01-31T00:00:01Z"))).join("\n")).toContain(", expired\n");
    expect(read(pem, "a.crt", new Date("2026-02-02T00:00:00Z")).daysLeft).toBe(-2);
  });

  it("takes nothing for a role but one DER UTF8String of a role's name", async () => {
    expect(await role()).toBeUndefined();
    expect(await role(`0c06${hex("writer")}`)).toBe("writer");
    expect(await role(`0c06${hex("reader")}`)).toBe("reader");
    expect(await role(`0c05${hex("admin")}`)).toBe("admin");
    expect(await role(`0c06${hex("Writer")}`)).toBe("malformed");
    expect(await role(`0c07${hex("writer\0")}`)).toBe("malformed");
    expect(await role(`1306${hex("writer")}`)).toBe("malformed");
    expect(await role(`0c8106${hex("writer")}`)).toBe("malformed");
    expect(await role(`0c06${hex("writer")}00`)).toBe("malformed");
    expect(await role("")).toBe("malformed");
    expect(await role(`0c06${hex("reader")}`, `0c06${hex("writer")}`)).toBe("malformed");
  });

  it("has a subject in one line, whatever is in it", async () => {
    const lines = format(read(await certificate("a\u001b[2Jb\nrole  writer"), "x"));
    expect(lines.filter((line) => line.startsWith("role"))).toEqual([]);
  });
});

describe("inspecting a file", () => {
  it("reads a request too, and shows what it asks for", async () => {
    await using dir = await mkdtempDisposable(join(tmpdir(), "jobs-certs-"));
    const path = join(dir.path, "w.csr");
    await writeFile(path, await createRequest("w", key, ["w.internal", "10.0.0.1"]));
    const described = await inspectFile(path);
    expect(described).toEqual({
      kind: "request",
      subject: "CN=w",
      hosts: ["w.internal", "10.0.0.1"],
      key: { type: "rsa", bits: 2048 },
    });
    expect(format(described)).toContain("hosts       w.internal, 10.0.0.1");
  });

  it("says of a private key that it is one, and shows nothing of it", async () => {
    await using dir = await mkdtempDisposable(join(tmpdir(), "jobs-certs-"));
    const path = join(dir.path, "w.key");
    await writeFile(path, keyToPem(key));
    await expect(inspectFile(path)).rejects.toThrow(`${path}: holds PRIVATE KEY (line 1), no certificate`);
    await writeFile(path, "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n");
    await expect(inspectFile(path)).rejects.toThrow(`${path}:1: the certificate is damaged`);
  });
});
