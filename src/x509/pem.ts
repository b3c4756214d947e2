import { createPrivateKey, type KeyObject, X509Certificate } from "node:crypto";
import { reasonOf } from "../os/errno.ts";
import { extensions } from "./der.ts";

/**
 * The fault of a file of certificates or keys: `unreadable` the file cannot be read, `exposed` others may read a
 * key, `malformed` the contents are damaged, `wrong-kind` the contents are something else, `encrypted` a key needs a
 * passphrase, `unsupported` TLS 1.3 has no use for it, `mismatch` the key is that of another certificate.
 */
export type PemErrorCode =
  | "unreadable"
  | "exposed"
  | "malformed"
  | "wrong-kind"
  | "encrypted"
  | "unsupported"
  | "mismatch";

/** The message begins with the file's name, where it can with `:LINE`, and says what would be right. */
export class PemError extends Error {
  override readonly name = "PemError";
  readonly code: PemErrorCode;

  constructor(code: PemErrorCode, message: string, cause?: unknown) {
    super(message, { cause });
    this.code = code;
  }
}

/** One block of a PEM file (RFC 7468), from `-----BEGIN label-----` in `line` on. */
export interface Block {
  readonly label: string;
  readonly line: number;
  readonly der: Buffer;
  /** Its key is encrypted in OpenSSL's old way, by the header `Proc-Type: 4,ENCRYPTED`. */
  readonly encrypted: boolean;
}

/** A certificate, and where it was found, as in `ca.crt:12`. */
export interface Found {
  readonly certificate: X509Certificate;
  readonly at: string;
}

const BEGIN = /^-----BEGIN ([A-Z0-9 ]+)-----$/;
const END = /^-----END ([A-Z0-9 ]+)-----$/;
/** Files that were put together without a newline between them have an end and a beginning in one line. */
const GLUED = /(?<=-----END [A-Z0-9 ]{1,40}-----)(?=-----BEGIN )/;
const HEADER = /^[A-Za-z0-9-]+:/;
const BASE64 = /^[A-Za-z0-9+/]*={0,2}$/;
const DER_SEQUENCE = 0x30;

/**
 * The blocks of a PEM file, in order; text around them, a byte order mark, CRLF and indentation do no harm. Throws
 * PemError `malformed`, led by `from`.
 */
export function pemBlocks(contents: string | Uint8Array, from: string): readonly Block[] {
  const found: Block[] = [];
  let open: { readonly label: string; readonly line: number; body: string; encrypted: boolean } | undefined;
  for (const { text, line } of linesOf(contents, from)) {
    const [, begun] = BEGIN.exec(text) ?? [];
    const [, ended] = END.exec(text) ?? [];
    if (begun !== undefined) {
      if (open) throw unended(open, from);
      open = { label: begun, line, body: "", encrypted: false };
    } else if (!open) {
      continue;
    } else if (ended === undefined) {
      if (HEADER.test(text)) open.encrypted ||= text.includes("ENCRYPTED");
      else if (BASE64.test(text)) open.body += text;
      else throw new PemError("malformed", `${from}:${line}: is not base64, in the ${open.label} of line ${open.line}`);
    } else {
      const { label, line: first, body, encrypted } = open;
      if (ended !== label) throw unended(open, from);
      found.push({ label, line: first, der: Buffer.from(body, "base64"), encrypted });
      open = undefined;
    }
  }
  if (open) throw unended(open, from);
  return found;
}

/** The certificates of a file, PEM or DER, in order. Throws PemError, led by `from`. */
export function certificatesIn(contents: string | Uint8Array, from: string): readonly [Found, ...Found[]] {
  const wanted = "a PEM file with -----BEGIN CERTIFICATE----- is needed";
  const der = derOf(contents);
  if (der) {
    const remedy = `of a PKCS #12 file (.p12, .pfx) openssl pkcs12 -in ${from} -nodes makes PEM`;
    const message = `${from}: is not a certificate in DER (${remedy})`;
    return [parsed(der, from, message)];
  }
  const blocks = pemBlocks(contents, from);
  for (const { label, line } of blocks) {
    const command = UNPACKED.get(label);
    if (command)
      throw new PemError("unsupported", `${from}:${line}: holds a ${label}; ${command} ${from} makes plain PEM`);
  }
  const [first, ...more] = blocks
    .filter(({ label }) => label === "CERTIFICATE" || label === "X509 CERTIFICATE")
    .map((block) => parsed(block.der, `${from}:${block.line}`, `${from}:${block.line}: the certificate is damaged`));
  if (first) return [first, ...more];
  const request = blocks.some(({ label }) => label.endsWith("CERTIFICATE REQUEST"));
  const signing = request ? " (a request has to be signed first: jobsctl certs sign)" : "";
  throw wrongKind(contents, blocks, from, "no certificate", `${wanted}${signing}`);
}

/** The first certificate signing request of a file, as DER. Throws PemError, led by `from`. */
export function requestIn(contents: string | Uint8Array, from: string): Buffer {
  const der = derOf(contents);
  if (der) return der;
  const blocks = pemBlocks(contents, from);
  // The old label is still written by keytool and by Windows.
  const request = blocks.find(({ label }) => /^(NEW )?CERTIFICATE REQUEST$/.test(label));
  if (request) return request.der;
  throw wrongKind(contents, blocks, from, "no certificate request", "a PEM file with a CERTIFICATE REQUEST is needed");
}

/** The certificates of a file of trusted CAs. Throws PemError, also for a certificate that is not a CA's. */
export function authoritiesIn(contents: string | Uint8Array, from: string): readonly Found[] {
  const found = certificatesIn(contents, from);
  for (const { certificate, at } of found) {
    if (maySign(certificate)) continue;
    const message = `${at}: ${nameOf(certificate)} is not a CA's certificate (CA:TRUE and keyCertSign)`;
    throw new PemError("wrong-kind", `${message}; give that of its signer, ${distinguished(certificate.issuer)}`);
  }
  return found;
}

/** The certificates that are to be shown to the other side. Throws PemError, also for a key that TLS 1.3 does not take. */
function strongIn(contents: string | Uint8Array, from: string): readonly Found[] {
  const found = certificatesIn(contents, from);
  for (const { certificate, at } of found) {
    const why = weaknessOf(certificate.publicKey);
    if (why) throw new PemError("unsupported", `${at}: ${nameOf(certificate)} has ${why}; ${KEYS}`);
  }
  return found;
}

/** The one private key of a file, PEM (PKCS #1, PKCS #8, SEC 1) or DER. Throws PemError, led by `from`. */
export function privateKeyIn(contents: string | Uint8Array, from: string): KeyObject {
  const der = derOf(contents);
  if (der) return usable(derKey(der, from), from);
  const blocks = pemBlocks(contents, from);
  const [block, ...more] = blocks.filter(({ label }) => label.endsWith("PRIVATE KEY"));
  if (!block) throw wrongKind(contents, blocks, from, "no private key", "a PEM file with a PRIVATE KEY is needed");
  const at = `${from}:${block.line}`;
  if (more.length > 0) {
    const lines = [block, ...more].map(({ line }) => line).join(", ");
    throw new PemError("wrong-kind", `${from}: holds several private keys, in lines ${lines}; give a file with one`);
  }
  if (block.encrypted || block.label.startsWith("ENCRYPTED")) throw new PemError("encrypted", encrypted(at, from));
  if (block.label.startsWith("OPENSSH")) {
    const remedy = `ssh-keygen -p -m PEM -f ${from} turns it into PEM`;
    throw new PemError("unsupported", `${at}: is a private key in OpenSSH's own format; ${remedy}`);
  }
  const type = KEY_TYPES.get(block.label);
  if (!type) throw new PemError("unsupported", `${at}: holds a ${block.label}; ${KEYS}`);
  try {
    return usable(createPrivateKey({ key: block.der, format: "der", type }), at);
  } catch (error) {
    if (error instanceof PemError) throw error;
    throw new PemError("malformed", `${at}: the private key is damaged (${reasonOf(error)})`, error);
  }
}

/** The files that each side of TLS needs, in PEM or DER. `ca` may hold several certificates, `cert` a chain. */
export interface TlsPem {
  readonly ca: string | Buffer;
  readonly cert: string | Buffer;
  readonly key: string | Buffer;
}

/** The parsed files. `pem` is made from what was parsed, so that nothing else reaches OpenSSL. */
export interface TlsFiles {
  readonly authorities: readonly X509Certificate[];
  readonly own: X509Certificate;
  /** `own` first. */
  readonly chain: readonly X509Certificate[];
  readonly key: KeyObject;
  readonly pem: { readonly ca: string; readonly cert: string; readonly key: string };
}

/** A fault in the file `what` of the three. `key` is also named when it does not belong to the certificate. */
export class TlsFileError extends PemError {
  readonly part: keyof TlsPem;

  constructor(part: keyof TlsPem, { code, message, cause }: PemError) {
    super(code, message, cause);
    this.part = part;
  }
}

/**
 * Reads what TLS is to be given. The key's own certificate is put in front of its chain. Throws TlsFileError, led by
 * the name in `names`.
 */
export function parseTls(given: TlsPem, names: { readonly [part in keyof TlsPem]: string } = PARTS): TlsFiles {
  const authorities = of("ca", () => authoritiesIn(given.ca, names.ca)).map(({ certificate }) => certificate);
  const found = of("cert", () => strongIn(given.cert, names.cert)).map(({ certificate }) => certificate);
  const key = of("key", () => privateKeyIn(given.key, names.key));
  const own = found.find((certificate) => certificate.checkPrivateKey(key));
  if (!own) {
    const whose = found.map(nameOf).join("; ");
    const message = `${names.key}: the private key does not belong to the certificate of ${names.cert} (${whose}); give the key that its request was made with`;
    throw new TlsFileError("key", new PemError("mismatch", message));
  }
  const chain = [own, ...found.filter((certificate) => certificate !== own)];
  const pem = { ca: bundle(authorities), cert: bundle(chain), key: key.export({ type: "pkcs8", format: "pem" }) };
  return { authorities, own, chain, key, pem };
}

/** The subject in one line, such as "CN=ada, O=lab". */
export function nameOf(certificate: X509Certificate): string {
  return distinguished(certificate.subject) || "a certificate without a subject";
}

/**
 * Whether a certificate may sign others: CA:TRUE and, where there is a key usage, keyCertSign; or one of the old kind
 * without extensions that is its own issuer, which OpenSSL takes as a root.
 */
export function maySign(certificate: X509Certificate): boolean {
  return certificate.ca || (extensions(certificate.raw)?.length === 0 && certificate.checkIssued(certificate));
}

/** The fewest bits of an RSA key that OpenSSL's security level 2 lets in. */
export const LEAST_RSA_BITS = 2048;

const PARTS = { ca: "ca", cert: "cert", key: "key" } as const;
const UNPACKED: ReadonlyMap<string, string> = new Map([
  ["TRUSTED CERTIFICATE", "openssl x509 -in"],
  ["PKCS7", "openssl pkcs7 -print_certs -in"],
]);
const KEY_TYPES: ReadonlyMap<string, "pkcs1" | "pkcs8" | "sec1"> = new Map([
  ["PRIVATE KEY", "pkcs8"],
  ["RSA PRIVATE KEY", "pkcs1"],
  ["EC PRIVATE KEY", "sec1"],
]);
const CURVES: ReadonlySet<string | undefined> = new Set(["prime256v1", "secp384r1", "secp521r1"]);
const KEYS = `RSA of ${LEAST_RSA_BITS} bits or more, ECDSA on P-256, P-384 or P-521, and Ed25519 are accepted`;

function of<T>(part: keyof TlsPem, read: () => T): T {
  try {
    return read();
  } catch (error) {
    throw error instanceof PemError ? new TlsFileError(part, error) : error;
  }
}

function* linesOf(contents: string | Uint8Array, from: string): Generator<{ text: string; line: number }> {
  const text = typeof contents === "string" ? contents : Buffer.from(contents).toString("latin1");
  if (/^(\xff\xfe|\xfe\xff)/.test(text)) {
    throw new PemError("malformed", `${from}: is UTF-16; save it as plain text (ASCII or UTF-8)`);
  }
  const lines = text.replace(/^(\xef\xbb\xbf|\ufeff)/, "").split(/\r\n|\n|\r/);
  for (const [at, whole] of lines.entries()) {
    for (const part of whole.split(GLUED)) yield { text: part.trim(), line: at + 1 };
  }
}

/** The contents when they are DER and not PEM. */
function derOf(contents: string | Uint8Array): Buffer | undefined {
  if (typeof contents === "string" || contents[0] !== DER_SEQUENCE) return undefined;
  const bytes = Buffer.from(contents);
  // Text may begin with "0", too.
  return bytes.includes("-----BEGIN ") ? undefined : bytes;
}

function unended({ label, line }: { readonly label: string; readonly line: number }, from: string): PemError {
  return new PemError("malformed", `${from}:${line}: the ${label} that begins here has no -----END ${label}-----`);
}

function parsed(der: Buffer, at: string, message: string): Found {
  try {
    const certificate = new X509Certificate(der);
    // Node reads both fields on first use. They may be damaged where the rest is not.
    void [certificate.publicKey, certificate.validFromDate.toISOString(), certificate.validToDate.toISOString()];
    return { certificate, at };
  } catch (error) {
    throw new PemError("malformed", `${message} (${reasonOf(error)})`, error);
  }
}

function wrongKind(
  contents: string | Uint8Array,
  blocks: readonly Block[],
  from: string,
  lacks: string,
  wanted: string,
): PemError {
  if (contents.length === 0) return new PemError("wrong-kind", `${from}: is empty; ${wanted}`);
  const there = blocks.map(({ label, line }) => `${label} (line ${line})`).join(", ") || "nothing in PEM";
  return new PemError("wrong-kind", `${from}: holds ${there}, ${lacks}; ${wanted}`);
}

function derKey(der: Buffer, from: string): KeyObject {
  for (const type of ["pkcs8", "pkcs1", "sec1"] as const) {
    try {
      return createPrivateKey({ key: der, format: "der", type });
    } catch {
      continue;
    }
  }
  throw new PemError(
    "malformed",
    `${from}: is not a private key in DER without a passphrase; give PEM: openssl pkey -inform DER -in ${from}`,
  );
}

function encrypted(at: string, from: string): string {
  return `${at}: the private key is encrypted; openssl pkey -in ${from} -out PLAIN.key decrypts it (then chmod 600)`;
}

/** Throws PemError `unsupported` for a key that no TLS 1.3 handshake takes. */
function usable(key: KeyObject, at: string): KeyObject {
  const why = weaknessOf(key);
  if (why) throw new PemError("unsupported", `${at}: is ${why}; ${KEYS}`);
  return key;
}

/** Says what is wrong with a private or public key; undefined for a key that TLS 1.3 takes. */
export function weaknessOf(key: KeyObject): string | undefined {
  const { modulusLength: bits = 0, namedCurve } = key.asymmetricKeyDetails ?? {};
  switch (key.asymmetricKeyType) {
    case "rsa":
    case "rsa-pss":
      return bits < LEAST_RSA_BITS ? `an RSA key of ${bits} bits` : undefined;
    case "ec":
      return CURVES.has(namedCurve) ? undefined : `a key on the curve ${namedCurve}`;
    case "ed25519":
    case "ed448":
      return undefined;
    default:
      return `a key of type ${key.asymmetricKeyType}`;
  }
}

/** Certificates as one PEM text, which ends in a newline unless there are none. */
export function bundle(certificates: readonly X509Certificate[]): string {
  return certificates.map((certificate) => `${certificate.toString().trimEnd()}\n`).join("");
}

function distinguished(name: string): string {
  return name.replaceAll("\n", ", ");
}
