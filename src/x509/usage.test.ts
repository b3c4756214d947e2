import "reflect-metadata";
import { ExtendedKeyUsageExtension, Extension, X509CertificateGenerator } from "@peculiar/x509";
import { beforeAll, expect, test } from "vitest";
import { allows } from "./usage.ts";

const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
const CLIENT = "1.3.6.1.5.5.7.3.2";
const SERVER = "1.3.6.1.5.5.7.3.1";
const ANY = "2.5.29.37.0";

let keys: Awaited<ReturnType<typeof crypto.subtle.generateKey>>;
beforeAll(async () => {
  keys = await crypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
});

test.each<[string, Extension[], client: boolean, server: boolean]>([
  ["without an extended key usage", [], true, true],
  ["with clientAuth", [new ExtendedKeyUsageExtension([CLIENT])], true, false],
  ["with serverAuth", [new ExtendedKeyUsageExtension([SERVER])], false, true],
  ["with both", [new ExtendedKeyUsageExtension([SERVER, CLIENT])], true, true],
  // OpenSSL refuses it, too, on both sides of a connection.
  ["with anyExtendedKeyUsage alone", [new ExtendedKeyUsageExtension([ANY])], false, false],
  ["with one that is no DER", [new Extension("2.5.29.37", false, Uint8Array.of(0x30, 9, 6))], false, false],
  ["with an empty one", [new Extension("2.5.29.37", false, Uint8Array.of(0x30, 0))], false, false],
  ["with two", [CLIENT, CLIENT].map((usage) => new ExtendedKeyUsageExtension([usage])), false, false],
])("a certificate %s", async (_, extensions, client, server) => {
  if (!("privateKey" in keys)) throw new Error("no key pair");
  const made = await X509CertificateGenerator.createSelfSigned({
    name: "CN=x",
    keys,
    signingAlgorithm: ALGORITHM,
    extensions,
  });
  const der = new Uint8Array(made.rawData);
  expect({ client: allows(der, "client"), server: allows(der, "server") }).toEqual({ client, server });
});

test("what is no certificate allows nothing", () => {
  expect(allows(new Uint8Array(), "client")).toBe(false);
  expect(allows(Buffer.from("no certificate"), "server")).toBe(false);
});
