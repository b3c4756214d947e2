/**
 * The part of DER (ITU-T X.690) that finding an extension in a certificate (RFC 5280, 4.1) needs, read strictly: one-byte
 * tags, definite lengths in their shortest form, nothing after the end.
 */

const SEQUENCE = 0x30;
const OBJECT_IDENTIFIER = 0x06;
const BOOLEAN = 0x01;
const OCTET_STRING = 0x04;
const EXTENSIONS = 0xa3;

/** A value: its tag, and its content without tag and length. */
export interface Element {
  readonly tag: number;
  readonly content: Uint8Array;
}

/** The values that `bytes` consists of, in order; undefined when it is not DER to its last byte. */
export function elements(bytes: Uint8Array): readonly Element[] | undefined {
  const found: Element[] = [];
  let at = 0;
  while (at < bytes.length) {
    const tag = bytes[at] ?? 0;
    const length = lengthAt(bytes, at + 1);
    if ((tag & 0x1f) === 0x1f || length === undefined || length.end > bytes.length) return undefined;
    found.push({ tag, content: bytes.subarray(length.start, length.end) });
    at = length.end;
  }
  return found;
}

/** An extension of a certificate: its object identifier (the DER content, in hex) and the content of its value. */
export interface CertificateExtension {
  readonly oidHex: string;
  readonly critical: boolean;
  readonly value: Uint8Array;
}

/** All extensions of a certificate, in order; undefined when the certificate is malformed. */
export function extensions(certificate: Uint8Array): readonly CertificateExtension[] | undefined {
  const toBeSigned = sequence(sequence(elements(certificate))?.slice(0, 1));
  const list = toBeSigned?.filter(({ tag }) => tag === EXTENSIONS);
  if (list?.length === 0) return [];
  const found: CertificateExtension[] = [];
  for (const element of sequence(onlyContent(list)) ?? [undefined]) {
    const [oid, ...rest] = sequence(element && [element]) ?? [];
    const flag = rest.length === 2 && rest[0]?.tag === BOOLEAN ? rest.shift() : undefined;
    const [value] = rest;
    if (oid?.tag !== OBJECT_IDENTIFIER || value?.tag !== OCTET_STRING || rest.length !== 1) return undefined;
    const critical = flag !== undefined && flag.content.some((byte) => byte !== 0);
    found.push({ oidHex: Buffer.from(oid.content).toString("hex"), critical, value: value.content });
  }
  return found;
}

const COMMON_NAME = "550403";
const VERSION = 0xa0;
/** How the texts of a name are encoded (RFC 5280, appendix A.1, DirectoryString and IA5String), by their tags. */
const TEXTS: ReadonlyMap<number, (bytes: Buffer) => string | undefined> = new Map([
  [0x0c, (bytes) => decoded(bytes, "utf-8")],
  [0x13, (bytes) => bytes.toString("latin1")],
  [0x14, (bytes) => bytes.toString("latin1")],
  [0x16, (bytes) => bytes.toString("latin1")],
  [0x1e, (bytes) => decoded(bytes, "utf-16be")],
]);

/** Returns undefined for bytes that are no text: with others in their place, two names would become one. */
function decoded(bytes: Buffer, encoding: string): string | undefined {
  try {
    return new TextDecoder(encoding, { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return undefined;
  }
}

/** The common names of a certificate's subject, in order; undefined when the certificate or one of them is malformed. */
export function commonNames(certificate: Uint8Array): readonly string[] | undefined {
  const toBeSigned = sequence(sequence(elements(certificate))?.slice(0, 1));
  // Serial number, signature, issuer, validity, subject.
  const subject = toBeSigned?.filter(({ tag }) => tag !== VERSION).slice(4, 5);
  const found: string[] = [];
  for (const set of sequence(subject) ?? [undefined]) {
    for (const attribute of (set && elements(set.content)) ?? [undefined]) {
      const [oid, value] = sequence(attribute && [attribute]) ?? [];
      if (!oid || !value) return undefined;
      if (Buffer.from(oid.content).toString("hex") !== COMMON_NAME) continue;
      const text = TEXTS.get(value.tag)?.(Buffer.from(value.content));
      if (text === undefined) return undefined;
      found.push(text);
    }
  }
  return found;
}

/** The object identifiers (DER contents, in hex) in a SEQUENCE of nothing else; undefined when it is something else. */
export function objectIdentifiers(bytes: Uint8Array): readonly string[] | undefined {
  const list = sequence(elements(bytes));
  if (!list?.every(({ tag }) => tag === OBJECT_IDENTIFIER)) return undefined;
  return list.map(({ content }) => Buffer.from(content).toString("hex"));
}

/** The elements in `of`, when it is one SEQUENCE. */
function sequence(of: readonly Element[] | undefined): readonly Element[] | undefined {
  const [only, ...more] = of ?? [];
  return only?.tag === SEQUENCE && more.length === 0 ? elements(only.content) : undefined;
}

function onlyContent(of: readonly Element[] | undefined): readonly Element[] | undefined {
  const [only, ...more] = of ?? [];
  return only && more.length === 0 ? elements(only.content) : undefined;
}

function lengthAt(bytes: Uint8Array, at: number): { start: number; end: number } | undefined {
  const first = bytes[at];
  if (first === undefined) return undefined;
  if (first < 0x80) return { start: at + 1, end: at + 1 + first };
  const count = first & 0x7f;
  if (count === 0 || count > 4) return undefined;
  let length = 0;
  for (let i = 1; i <= count; i++) length = length * 256 + (bytes[at + i] ?? 0);
  const shortest = length >= 0x80 && length >= 256 ** (count - 1);
  const start = at + 1 + count;
  return shortest ? { start, end: start + length } : undefined;
}
