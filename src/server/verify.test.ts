import "reflect-metadata";
import { type webcrypto, X509Certificate } from "node:crypto";
import { Worker } from "node:worker_threads";
import { BasicConstraintsExtension, X509CertificateGenerator } from "@peculiar/x509";
import { expect, test } from "vitest";
import { authority, pemOf } from "./testing/authority.ts";
import { cpuMs, running } from "./testing/server.ts";

const P521 = { name: "ECDSA", namedCurve: "P-521", hash: "SHA-512" };
const RSA = {
  name: "RSASSA-PKCS1-v1_5",
  hash: "SHA-256",
  modulusLength: 1024,
  publicExponent: new Uint8Array([1, 0, 1]),
};

/** As many certificates fit into 32 KiB. */
const LENGTH = 60;
const HANDSHAKES = 5;

function generateKeys(algorithm: typeof P521 | typeof RSA): Promise<webcrypto.CryptoKeyPair> {
  return crypto.subtle.generateKey(algorithm, true, ["sign", "verify"]);
}

/** Makes a chain of certificates whose signatures take long to verify, the leaf first. Nobody trusts the last. */
async function slowChain(leaf: webcrypto.CryptoKeyPair): Promise<X509Certificate[]> {
  const keys = await generateKeys(P521);
  const dates = { notBefore: new Date(Date.now() - 1000), notAfter: new Date(Date.now() + 24 * 3600 * 1000) };
  const chain = Array.from({ length: LENGTH }, async (_, depth) => {
    const certificate = await X509CertificateGenerator.create({
      ...dates,
      serialNumber: String(10 + depth),
      subject: `CN=${depth}`,
      issuer: `CN=${depth + 1}`,
      publicKey: (depth === 0 ? leaf : keys).publicKey,
      signingKey: keys.privateKey,
      signingAlgorithm: P521,
      extensions: depth === 0 ? [] : [new BasicConstraintsExtension(true)],
    });
    return new X509Certificate(certificate.toString("pem"));
  });
  return Promise.all(chain);
}

/** Shakes hands with the server one time after another, in a thread of its own. */
async function shakeHands(port: number, cert: string, key: string): Promise<void> {
  const stranger = `
    const { once } = require("node:events");
    const { connect } = require("node:tls");
    const { times, ...options } = require("node:worker_threads").workerData;
    void (async () => {
      for (let i = 0; i < times; i++) {
        const socket = connect(options).on("error", () => {}).resume();
        await new Promise((resolve) => socket.on("close", resolve));
      }
    })();`;
  const workerData = {
    times: HANDSHAKES,
    port,
    host: "127.0.0.1",
    cert,
    key,
    ALPNProtocols: ["h2"],
    rejectUnauthorized: false,
    // OpenSSL would refuse to show a certificate as weak as this.
    ciphers: "DEFAULT@SECLEVEL=0",
  };
  const thread = new Worker(stranger, { eval: true, workerData });
  await new Promise((resolve, reject) => thread.on("exit", resolve).on("error", reject));
}

test.each([
  ["a strong key", P521, "UNABLE_TO_GET_ISSUER_CERT"],
  ["a key that is refused as weak", RSA, "CERTIFICATE_WEAK_KEY"],
])("a stranger's long chain under %s has no signature verified on the event loop", async (_, algorithm, reason) => {
  const leaf = await generateKeys(algorithm);
  const chain = await slowChain(leaf);
  const beganMs = cpuMs();
  for (const [depth, certificate] of chain.entries()) certificate.verify((chain[depth + 1] ?? certificate).publicKey);
  const verifyMs = cpuMs() - beganMs;
  await using server = await running(await authority());
  const cert = chain.map(String).join("");
  await shakeHands(server.port, cert, await pemOf(leaf));
  const shakingMs = cpuMs();
  await shakeHands(server.port, cert, await pemOf(leaf));
  expect((cpuMs() - shakingMs) / HANDSHAKES).toBeLessThan(verifyMs / 4);
  expect(server.audit).toHaveLength(2 * HANDSHAKES);
  expect(server.audit[0]).toMatchObject({
    event: "connection",
    decision: "denied",
    reason: expect.stringContaining(reason),
  });
});

test("a chain of more than 32 KiB is refused unread", async () => {
  const leaf = await generateKeys(P521);
  const chain = await slowChain(leaf);
  await using server = await running(await authority());
  await shakeHands(server.port, [...chain, ...chain].map(String).join(""), await pemOf(leaf));
  expect(server.audit[0]).toMatchObject({ reason: "ERR_SSL_EXCESSIVE_MESSAGE_SIZE" });
});
