import { createPrivateKey, X509Certificate, type KeyObject } from "node:crypto";

/** PEM, each. `ca` may hold several certificates, `cert` a chain. */
export interface TlsPem {
  readonly ca: string | Buffer;
  readonly cert: string | Buffer;
  readonly key: string | Buffer;
}

type ServeErrorCode = "bad-ca" | "bad-certificate" | "bad-key" | "key-mismatch" | "port-in-use" | "cannot-listen";

/** Why a server cannot be: `code` for programs; the message says which of its options is wrong. */
export class ServeError extends Error {
  override readonly name = "ServeError";
  readonly code: ServeErrorCode;

  constructor(code: ServeErrorCode, message: string, cause?: unknown) {
    super(message, { cause });
    this.code = code;
  }
}

/** id-kp-serverAuth, RFC 5280, 4.2.1.12. */
const SERVER_AUTH = "1.3.6.1.5.5.7.3.1";
const SOON_MS = 14 * 24 * 3600 * 1000;

/**
 * Checks the server's own files: throws ServeError for what cannot work, and tells `warn` of what clients will refuse.
 */
export function checkPem({ ca, cert, key }: TlsPem, warn: (problem: string, certificate: string) => void): void {
  const authorities = certificates("bad-ca", "the CA certificate (ca)", ca);
  const chain = certificates("bad-certificate", "the worker's certificate (cert)", cert);
  const privateKey = parseKey(key);
  const [own] = chain;
  if (!own?.checkPrivateKey(privateKey)) {
    throw new ServeError(
      "key-mismatch",
      `the private key (key) does not belong to the worker's certificate (cert: ${describe(own)}): give the key that its request was made with`,
    );
  }
  for (const problem of problems(own, [...chain, ...authorities])) warn(problem, describe(own));
}

function* problems(own: X509Certificate, signers: readonly X509Certificate[]): Generator<string> {
  const nowMs = Date.now();
  const endMs = own.validToDate.getTime();
  if (nowMs < own.validFromDate.getTime()) {
    yield `the worker's certificate is valid only from ${own.validFromDate.toISOString()}: clients will refuse it`;
  }
  if (nowMs > endMs)
    yield `the worker's certificate expired at ${own.validToDate.toISOString()}: clients will refuse it`;
  else if (endMs - nowMs < SOON_MS) yield `the worker's certificate expires at ${own.validToDate.toISOString()}`;
  const signed = signers.some((ca) => own.checkIssued(ca) && own.verify(ca.publicKey));
  if (!signed) yield "the worker's certificate is not signed by the CA (ca): clients that trust this CA will refuse it";
  // Node's types say string[]; it is undefined without the extension, which allows every use.
  const usages: readonly string[] | undefined = own.keyUsage;
  if (usages && !usages.includes(SERVER_AUTH)) {
    yield "the worker's certificate is not for servers (extended key usage serverAuth): clients will refuse it";
  }
}

function certificates(code: ServeErrorCode, what: string, pem: string | Buffer): readonly X509Certificate[] {
  const blocks = pem.toString().match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g);
  if (!blocks) throw new ServeError(code, `${what} holds no certificate: it must be PEM, with BEGIN CERTIFICATE`);
  try {
    return blocks.map((block) => new X509Certificate(block));
  } catch (error) {
    throw new ServeError(code, `${what} cannot be parsed: ${messageOf(error)}`, error);
  }
}

function parseKey(pem: string | Buffer): KeyObject {
  try {
    return createPrivateKey(pem);
  } catch (error) {
    const message = `the private key (key) cannot be parsed: it must be PEM, without a passphrase (${messageOf(error)})`;
    throw new ServeError("bad-key", message, error);
  }
}

function describe(certificate: X509Certificate | undefined): string {
  return `${certificate?.subject.replaceAll("\n", ", ")}, serial ${certificate?.serialNumber}`;
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
