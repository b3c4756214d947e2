import "reflect-metadata";
import { createPublicKey, generateKeyPairSync, type KeyObject, X509Certificate } from "node:crypto";
import { chmod, mkdtempDisposable, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  BasicConstraintsExtension,
  type Extension,
  KeyUsageFlags,
  KeyUsagesExtension,
  Pkcs10CertificateRequestGenerator,
  SubjectAlternativeNameExtension,
} from "@peculiar/x509";
import { beforeAll, describe, expect, it } from "vitest";
import { type Authority, createAuthority, openAuthority, sign, type SignOptions, toPem } from "./authority.ts";
import { describe as read } from "./inspect.ts";
import { generateKey, keyToPem, SIGNING, toCryptoKey } from "./key.ts";
import { roleExtension } from "./profile.ts";
import { createRequest, parseRequest } from "./request.ts";

const DAY_MS = 86_400_000;

let ca: Authority;
let key: KeyObject;
beforeAll(async () => {
  [ca, key] = await Promise.all([createAuthority({ bits: 2048 }), generateKey(2048)]);
});

/** A request such as a stranger's tool may make: any subject, any extensions. */
async function strangers(extensions: Extension[], cn: string[] = ["mallory"]): Promise<string> {
  const request = await Pkcs10CertificateRequestGenerator.create({
    name: [{ O: ["Evil"] }, { CN: cn }],
    keys: { privateKey: await toCryptoKey(key, "sign"), publicKey: await toCryptoKey(createPublicKey(key), "verify") },
    signingAlgorithm: SIGNING,
    extensions,
  });
  return request.toString("pem");
}

async function signed(pem: string, options: SignOptions): Promise<string> {
  return sign(ca, await parseRequest(pem, "the.csr"), { minBits: 2048, ...options });
}

/** Signs as a reader, whatever the key. */
function signKey(publicKey: KeyObject): Promise<string> {
  return sign(ca, { commonName: "alice", publicKey, altNames: [] }, { profile: "reader", minBits: 2048 });
}

async function store(dir: string, crt: string, pem: string): Promise<[crt: string, key: string]> {
  const paths: [string, string] = [join(dir, "ca.crt"), join(dir, "ca.key")];
  await writeFile(paths[0], crt);
  await writeFile(paths[1], pem, { mode: 0o600 });
  return paths;
}

describe("a request that asks for more than its due", () => {
  it("becomes a plain reader's leaf when signed as a reader", async () => {
    const pem = await signed(
      await strangers([
        new BasicConstraintsExtension(true, 3, true),
        new KeyUsagesExtension(KeyUsageFlags.keyCertSign | KeyUsageFlags.cRLSign, true),
        roleExtension("writer"),
        new SubjectAlternativeNameExtension([{ type: "dns", value: "worker.internal" }]),
      ]),
      { profile: "reader" },
    );
    const leaf = new X509Certificate(pem);
    expect(leaf.ca).toBe(false);
    expect(leaf.subject).toBe("CN=mallory");
    expect(leaf.keyUsage).toEqual(["1.3.6.1.5.5.7.3.2"]);
    expect(leaf.subjectAltName).toBeUndefined();
    expect(leaf.raw.includes("writer")).toBe(false);
    expect(read(pem, "leaf")).toMatchObject({ role: "reader", ca: false, hosts: [], usages: ["clientAuth"] });
  });

  it("gets no wildcard and no name that is not a host's", async () => {
    const wildcard = await strangers([new SubjectAlternativeNameExtension([{ type: "dns", value: "*.internal" }])]);
    const email = await strangers([new SubjectAlternativeNameExtension([{ type: "email", value: "a@b.c" }])]);
    await expect(signed(wildcard, { profile: "worker" })).rejects.toThrow('"*.internal"');
    await expect(signed(email, { profile: "worker" })).rejects.toThrow('"email:a@b.c"');
  });

  it("gets no second name, none with control characters, and not the CA's", async () => {
    await expect(signed(await strangers([], ["a", "b"]), { profile: "reader" })).rejects.toThrow("one common name");
    await expect(signed(await strangers([], ["a\nb"]), { profile: "reader" })).rejects.toThrow("one common name");
    await expect(signed(await strangers([], ["jobs CA"]), { profile: "reader" })).rejects.toThrow("one common name");
    const { publicKey } = await parseRequest(await strangers([]), "the.csr");
    const namesake = { commonName: "jobs CA", publicKey, altNames: [] };
    await expect(sign(ca, namesake, { profile: "reader", minBits: 2048 })).rejects.toThrow("the CA's own name");
  });
});

describe("a worker's certificate", () => {
  it("has the hosts of the request when the signer names none", async () => {
    const pem = await signed(await createRequest("w", key, ["w.internal", "fd00::0:1"]), { profile: "worker" });
    expect(read(pem, "leaf").hosts).toEqual(["w.internal", "fd00::1"]);
  });

  it("has the signer's hosts instead of the request's", async () => {
    const csr = await createRequest("w", key, ["asked.internal"]);
    const pem = await signed(csr, { profile: "worker", hosts: ["given.internal"] });
    expect(read(pem, "leaf").hosts).toEqual(["given.internal"]);
  });

  it("needs a host, and a client's takes none", async () => {
    const csr = await createRequest("w", key);
    await expect(signed(csr, { profile: "worker" })).rejects.toThrow("--host: a worker's certificate needs");
    await expect(signed(csr, { profile: "reader", hosts: ["a"] })).rejects.toThrow("--host: is for --role worker");
  });
});

describe("a request is refused", () => {
  it("when one byte of what was signed has changed", async () => {
    const pem = await createRequest("alice", key);
    const der = Buffer.from(pem.replaceAll(/-----.*-----|\s/g, ""), "base64");
    der.write("alicf", der.indexOf("alice"));
    const tampered = `-----BEGIN CERTIFICATE REQUEST-----\n${der.toString("base64")}\n-----END CERTIFICATE REQUEST-----`;
    await expect(parseRequest(pem, "a.csr")).resolves.toMatchObject({ commonName: "alice" });
    await expect(parseRequest(tampered, "a.csr")).rejects.toThrow(/^a\.csr: its signature is not by its own key/);
  });

  it("when it is no request at all", async () => {
    const noise = "-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----";
    await expect(parseRequest(noise, "a.csr")).rejects.toThrow("a.csr: is not a well-formed");
  });

  it("when its key is under 4096 bits and nothing else was said, and under 2048 whatever was said", async () => {
    const request = await parseRequest(await createRequest("alice", key), "a.csr");
    await expect(sign(ca, request, { profile: "reader" })).rejects.toThrow("RSA key of 2048 bits; 4096 to 8192");
    const { privateKey: weak } = generateKeyPairSync("rsa", { modulusLength: 1024 });
    const frail = await parseRequest(await createRequest("bob", weak), "b.csr");
    await expect(sign(ca, frail, { profile: "reader", minBits: 512 })).rejects.toThrow("1024 bits; 2048 to 8192");
  });

  it("when its key is not RSA, or has a tiny exponent", async () => {
    const curve = generateKeyPairSync("ec", { namedCurve: "P-256" }).publicKey;
    const cubed = generateKeyPairSync("rsa", { modulusLength: 2048, publicExponent: 3 }).publicKey;
    await expect(signKey(curve)).rejects.toThrow("alice: has a key of type ec; RSA");
    await expect(signKey(cubed)).rejects.toThrow("alice: has an RSA key with exponent 3");
  });
});

describe("the life of a leaf", () => {
  it("is the days asked for", async () => {
    const pem = await signed(await createRequest("a", key), { profile: "reader", days: 7 });
    const { validFromDate, validToDate } = new X509Certificate(pem);
    expect(validToDate.getTime() - validFromDate.getTime()).toBe(7 * DAY_MS + 300_000);
  });

  it("ends with the CA's, which a longer one asked for by number is told", async () => {
    const csr = await createRequest("a", key);
    const now = new Date(ca.certificate.notAfter.getTime() - 10.5 * DAY_MS);
    const leaf = new X509Certificate(await signed(csr, { profile: "reader", now }));
    expect(leaf.validToDate).toEqual(ca.certificate.notAfter);
    await expect(signed(csr, { profile: "reader", now, days: 11 })).rejects.toThrow("at most 10");
  });

  it("cannot begin when the CA's has ended", async () => {
    const now = ca.certificate.notAfter;
    await expect(signed(await createRequest("a", key), { profile: "reader", now })).rejects.toThrow("has expired");
  });
});

describe("a CA on disk", () => {
  it("is opened again, and what it signs verifies", async () => {
    await using dir = await mkdtempDisposable(join(tmpdir(), "jobs-certs-"));
    const paths = await store(dir.path, toPem(ca.certificate), keyToPem(ca.key));
    const opened = await openAuthority(...paths);
    const request = await parseRequest(await createRequest("alice", key), "a.csr");
    const leaf = new X509Certificate(await sign(opened, request, { profile: "writer", minBits: 2048 }));
    expect(leaf.verify(new X509Certificate(toPem(ca.certificate)).publicKey)).toBe(true);
  });

  it("is refused with another's key, with a key that others can read, and when it is no CA's", async () => {
    await using dir = await mkdtempDisposable(join(tmpdir(), "jobs-certs-"));
    const [crt, path] = await store(dir.path, toPem(ca.certificate), keyToPem(key));
    await expect(openAuthority(crt, path)).rejects.toThrow(`${path}: is not the key of ${crt}`);
    await chmod(path, 0o640);
    await expect(openAuthority(crt, path)).rejects.toThrow(
      `${path}: others can read this private key (mode 0640): chmod 600`,
    );
    await chmod(path, 0o600);
    await writeFile(crt, await signed(await createRequest("alice", key), { profile: "writer" }));
    await expect(openAuthority(crt, path)).rejects.toThrow(`${crt}:1: CN=alice is not a CA's certificate`);
  });

  it("is refused by file when a file is missing, empty, encrypted or of another kind", async () => {
    await using dir = await mkdtempDisposable(join(tmpdir(), "jobs-certs-"));
    const [crt, path] = await store(dir.path, toPem(ca.certificate), keyToPem(ca.key));
    await expect(openAuthority(`${crt}x`, path)).rejects.toThrow(`${crt}x: no such file or directory`);
    await expect(openAuthority(path, path)).rejects.toThrow(`${path}: holds PRIVATE KEY (line 1), no certificate`);
    const secret = ca.key.export({ type: "pkcs8", format: "pem", cipher: "aes-256-cbc", passphrase: "x" });
    await writeFile(path, secret);
    await expect(openAuthority(crt, path)).rejects.toThrow(`${path}:1: the private key is encrypted`);
    await writeFile(path, "");
    await expect(openAuthority(crt, path)).rejects.toThrow(`${path}: is empty; a PEM file with a PRIVATE KEY`);
  });
});
