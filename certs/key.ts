import { generateKeyPair, KeyObject, webcrypto } from "node:crypto";
import { promisify } from "node:util";
import { readPrivate } from "../src/x509/file.ts";
import { privateKeyIn } from "../src/x509/pem.ts";
import { CertError } from "./error.ts";
import { readFrom } from "./files.ts";

/** RSA bits of a new key, and the fewest that a signer accepts when nothing else is said. */
const DEFAULT_BITS = 4096;
/** Under 2048 is broken by NIST SP 800-131A; over 8192 a handshake costs tens of milliseconds and buys nothing. */
const BITS = { min: 2048, max: 8192 };

/** The algorithm of every signature here: SHA-256 with RSA, PKCS #1 v1.5. */
export const SIGNING = { name: "RSASSA-PKCS1-v1_5", hash: "SHA-256" } as const;

/** A new RSA private key, made off the main thread. Throws CertError `invalid` for a size outside 2048 to 8192. */
export async function generateKey(bits = DEFAULT_BITS): Promise<KeyObject> {
  if (!Number.isInteger(bits) || bits < BITS.min || bits > BITS.max) {
    throw new CertError(
      "invalid",
      `bits: ${bits} is not a size for an RSA key; give ${BITS.min} to ${BITS.max}, 4096 by default`,
    );
  }
  const { privateKey } = await promisify(generateKeyPair)("rsa", { modulusLength: bits, publicExponent: 0x10001 });
  return privateKey;
}

/** A private key as PEM (PKCS #8), unencrypted: for a file of mode 0600. */
export function keyToPem(key: KeyObject): string {
  return key.export({ type: "pkcs8", format: "pem" });
}

/** Reads a private key that only its owner may read. Throws CertError `unreadable` or `refused`. */
export function readKey(path: string): Promise<KeyObject> {
  return readFrom(path, privateKeyIn, readPrivate);
}

/** Throws CertError `refused` unless the key is RSA of `minBits` (never under 2048) to 8192, exponent 65537 or more. */
export function requireStrong(key: KeyObject, of: string, minBits = DEFAULT_BITS): void {
  const { modulusLength: bits = 0, publicExponent = 0n } = key.asymmetricKeyDetails ?? {};
  const least = Math.max(minBits, BITS.min);
  if (key.asymmetricKeyType !== "rsa") {
    throw new CertError("refused", `${of}: has a key of type ${key.asymmetricKeyType}; RSA of ${least} bits is needed`);
  }
  if (bits < least || bits > BITS.max) {
    throw new CertError("refused", `${of}: has an RSA key of ${bits} bits; ${least} to ${BITS.max} are accepted`);
  }
  if (publicExponent < 0x10001n) {
    throw new CertError("refused", `${of}: has an RSA key with exponent ${publicExponent}; 65537 is the usual one`);
  }
}

/** A key for WebCrypto, which is what the X.509 library signs with. */
export function toCryptoKey(key: KeyObject, usage: "sign" | "verify"): Promise<webcrypto.CryptoKey> {
  // Node has key.toCryptoKey() from 22.10 on.
  const format = usage === "sign" ? "pkcs8" : "spki";
  return webcrypto.subtle.importKey(format, key.export({ type: format, format: "der" }), SIGNING, true, [usage]);
}
