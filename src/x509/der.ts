/**
 * The part of DER (ITU-T X.690) that certificates and lists of revoked ones (RFC 5280, 4.1 and 5.1) need, read strictly:
 * one-byte tags, definite lengths in their shortest form, nothing after the end.
 */

const SEQUENCE = 0x30;
const INTEGER = 0x02;
const OBJECT_IDENTIFIER = 0x06;
const BOOLEAN = 0x01;
const OCTET_STRING = 0x04;
const EXTENSIONS = 0xa3;

/** A value: its tag, and its content without tag and length. */
export interface Element {
  readonly tag: number;
  readonly content: Uint8Array;
}

/** The value that begins at `at`, and where the next one does; undefined when it is not DER. */
export function elementAt(bytes: Uint8Array, at: number): (Element & { readonly end: number }) | undefined {
  const tag = bytes[at] ?? 0;
  const length = lengthAt(bytes, at + 1);
  if ((tag & 0x1f) === 0x1f || length === undefined || length.end > bytes.length) return undefined;
  return { tag, content: bytes.subarray(length.start, length.end), end: length.end };
}

/** The values that `bytes` consists of, in order; undefined when it is not DER to its last byte. */
export function elements(bytes: Uint8Array): readonly Element[] | undefined {
  const found: Element[] = [];
  for (let at = 0; at < bytes.length;) {
    const element = elementAt(bytes, at);
    if (!element) return undefined;
    found.push(element);
    at = element.end;
  }
  return found;
}

/** An extension of a certificate or a list: its object identifier (the DER content, in hex) and the content of its value. */
export interface CertificateExtension {
  readonly oidHex: string;
  readonly critical: boolean;
  readonly value: Uint8Array;
}

/** All extensions of a certificate, in order; undefined when the certificate is malformed. */
export function extensions(certificate: Uint8Array): readonly CertificateExtension[] | undefined {
  const list = signedPart(certificate)?.filter(({ tag }) => tag === EXTENSIONS);
  return list?.length === 0 ? [] : extensionsIn(onlyContent(list));
}

/** The extensions that the one SEQUENCE in `of` consists of, in order; undefined when it is something else. */
export function extensionsIn(of: readonly Element[] | undefined): readonly CertificateExtension[] | undefined {
  const found: CertificateExtension[] = [];
  for (const element of sequence(of) ?? [undefined]) {
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
  const attributes = attributesOf(subjectOf(certificate))?.flat();
  const names = attributes?.filter(({ oidHex }) => oidHex === COMMON_NAME).map(({ text }) => text);
  return names?.every((name) => name !== undefined) ? names : undefined;
}

/**
 * A name (RFC 5280, 4.1.2.4) in a form that is the same for all encodings of it: strings of any type, in any case, with any
 * white space (RFC 5280, 7.1). Undefined when it is malformed.
 */
export function comparable(name: Element | undefined): string | undefined {
  const parts = attributesOf(name)?.map((set) =>
    set
      .map(({ oidHex, hex, text }) => `${oidHex} ${text?.trim().toLowerCase().replaceAll(/\s+/g, " ") ?? hex}`)
      .toSorted(),
  );
  return parts && JSON.stringify(parts);
}

/** The subject of a certificate. */
export function subjectOf(certificate: Uint8Array): Element | undefined {
  // Serial number, signature, issuer, validity, subject.
  return signedPart(certificate)?.filter(({ tag }) => tag !== VERSION)[4];
}

/** The serial number of a certificate by serialKey(); undefined when the certificate is malformed. */
export function serialOf(certificate: Uint8Array): string | undefined {
  const serial = signedPart(certificate)?.find(({ tag }) => tag !== VERSION);
  return serial?.tag === INTEGER ? serialKey(serial.content) : undefined;
}

/** The content of an INTEGER as text, a character a byte, the same for one with needless leading bytes. */
export function serialKey(content: Uint8Array): string {
  let at = 0;
  while (at + 1 < content.length && isNeedless(content[at], content[at + 1])) at++;
  return Buffer.from(content.buffer, content.byteOffset + at, content.length - at).toString("latin1");
}

/** The object identifiers (DER contents, in hex) in a SEQUENCE of nothing else; undefined when it is something else. */
export function objectIdentifiers(bytes: Uint8Array): readonly string[] | undefined {
  const list = sequence(elements(bytes));
  if (!list?.every(({ tag }) => tag === OBJECT_IDENTIFIER)) return undefined;
  return list.map(({ content }) => Buffer.from(content).toString("hex"));
}

/** A leading byte adds nothing where the next one has the same sign (ITU-T X.690, 8.3.2). */
function isNeedless(byte: number | undefined, next = 0): boolean {
  return byte === (next < 0x80 ? 0 : 0xff);
}

interface NameAttribute {
  readonly oidHex: string;
  readonly hex: string;
  /** Undefined when the value is no text. */
  readonly text: string | undefined;
}

/** The attributes of a name, by its parts; undefined when it is malformed. */
function attributesOf(name: Element | undefined): readonly (readonly NameAttribute[])[] | undefined {
  const found: (readonly NameAttribute[])[] = [];
  for (const set of sequence(name && [name]) ?? [undefined]) {
    const part: NameAttribute[] = [];
    for (const attribute of (set && elements(set.content)) ?? [undefined]) {
      const [oid, value] = sequence(attribute && [attribute]) ?? [];
      if (!oid || !value) return undefined;
      const [bytes, oidHex] = [Buffer.from(value.content), Buffer.from(oid.content).toString("hex")];
      part.push({ oidHex, hex: bytes.toString("hex"), text: TEXTS.get(value.tag)?.(bytes) });
    }
    found.push(part);
  }
  return found;
}

/** What a certificate's signature is over, value by value. */
function signedPart(certificate: Uint8Array): readonly Element[] | undefined {
  return sequence(sequence(elements(certificate))?.slice(0, 1));
}

/** The elements in `of`, when it is one SEQUENCE. */
export function sequence(of: readonly Element[] | undefined): readonly Element[] | undefined {
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
