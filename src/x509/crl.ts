import { createHash, verify, type X509Certificate } from "node:crypto";
import { constants } from "node:fs";
import { open } from "node:fs/promises";
import { meaningOf } from "../os/errno.ts";
import { turns } from "../os/turn.ts";
import {
  comparable,
  type Element,
  elementAt,
  elements,
  extensions,
  extensionsIn,
  sequence,
  serialKey,
  subjectOf,
} from "./der.ts";
import { nameOf, PemError } from "./pem.ts";

/** A list of revoked certificates (RFC 5280, 5) that a known CA has signed. */
export interface Crl {
  /** The CA whose certificates it is about, by caKey(). */
  readonly ca: string;
  /** The CA's name, for people. */
  readonly issuer: string;
  /** Absent in a list of version 1. */
  readonly number?: bigint;
  readonly thisUpdate: Date;
  readonly nextUpdate: Date;
  /** The serial numbers, by serialKey(). */
  readonly serials: ReadonlySet<string>;
  /** In base64. No two lists of different content have it in common. */
  readonly signature: string;
}

/** The lists of a file, the newest of each CA, and the lists in it that are about none of the CAs, by their issuers. */
export interface CrlFile {
  readonly lists: readonly Crl[];
  readonly strangers: readonly string[];
}

/** 100,000 revoked certificates are 7 MiB of PEM. */
const LIMIT_BYTES = 16 * 1024 * 1024;
const PIECE_BYTES = 512 * 1024;

const [SEQUENCE, INTEGER, BIT_STRING, UTC_TIME, GENERALIZED_TIME, CRL_EXTENSIONS] = [
  0x30, 0x02, 0x03, 0x17, 0x18, 0xa0,
];
const CRL_NUMBER = "551d14";
const DELTA_INDICATOR = "551d1b";
const DISTRIBUTION_POINT = "551d1c";
const CERTIFICATE_ISSUER = "551d1d";
const KEY_USAGE = "551d0f";
/** The last but one bit of a key usage's first byte, counted as in RFC 5280, 4.2.1.3: cRLSign. */
const CRL_SIGN = 0x02;
/** RFC 5280, 5.2.3: no more than 20 octets. */
const MAX_NUMBER_BYTES = 20;
/** The hash of each algorithm of signatures, by its identifier; null where the algorithm has its own. */
const ALGORITHMS: ReadonlyMap<string, string | null> = new Map([
  ["2a864886f70d01010b", "sha256"],
  ["2a864886f70d01010c", "sha384"],
  ["2a864886f70d01010d", "sha512"],
  ["2a8648ce3d040302", "sha256"],
  ["2a8648ce3d040303", "sha384"],
  ["2a8648ce3d040304", "sha512"],
  ["2b6570", null],
  ["2b6571", null],
]);

/**
 * Names a CA by its name and key, which all of its certificates have in common: another CA of the same name has another
 * key.
 */
export function caKey(certificate: X509Certificate): string {
  const key = certificate.publicKey.export({ type: "spki", format: "der" });
  return createHash("sha256")
    .update(`${comparable(subjectOf(certificate.raw))}\n`)
    .update(key)
    .digest("base64");
}

/** A file of lists, at most 16 MiB. Throws PemError `unreadable`, led by the path, for anything but a file. */
export async function readCrlFile(path: string): Promise<Buffer> {
  try {
    // A FIFO would be waited for.
    await using file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const stats = await file.stat();
    if (!stats.isFile()) throw new PemError("unreadable", `${path}: is not a file; a file of lists (CRL) is needed`);
    if (stats.size > LIMIT_BYTES) throw tooLarge(path);
    const chunks: Buffer[] = [];
    for await (const chunk of file.createReadStream({ end: LIMIT_BYTES, autoClose: false })) chunks.push(chunk);
    const bytes = Buffer.concat(chunks);
    if (bytes.length > LIMIT_BYTES) throw tooLarge(path);
    return bytes;
  } catch (error) {
    throw error instanceof PemError ? error : new PemError("unreadable", `${path}: ${meaningOf(error)}`, error);
  }
}

/**
 * Reads lists, PEM or DER, and verifies that one of `authorities` has signed each. Lets the event loop go on meanwhile,
 * whatever their size. Throws PemError, led by `from`, for a file of which not all is known: damaged, signed by another CA
 * of a known name, a delta, indirect, or with a critical extension that is not known.
 */
export async function crlsIn(
  contents: Buffer,
  from: string,
  authorities: readonly X509Certificate[],
): Promise<CrlFile> {
  const newest = new Map<string, Crl>();
  const strangers: string[] = [];
  const turn = turns();
  for (const { der, at } of await blocksIn(contents, from)) {
    await turn();
    const list = outlineOf(der, at);
    const namesakes = authorities.filter((ca) => comparable(subjectOf(ca.raw)) === comparable(list.issuer));
    if (namesakes.length === 0) {
      strangers.push(comparable(list.issuer) ?? "");
      continue;
    }
    const signer = await signerOf(list, namesakes, at);
    const found = await crlOf(list, signer, at);
    const other = newest.get(found.ca);
    if (!other || isNewer(found, other)) newest.set(found.ca, found);
  }
  return { lists: [...newest.values()], strangers };
}

/** Whether a list of the same CA came later: by its number, and where that is the same or absent by its time. */
export function isNewer(one: Crl, other: Crl): boolean {
  const [number, against] = [one.number ?? -1n, other.number ?? -1n];
  return number === against ? one.thisUpdate > other.thisUpdate : number > against;
}

interface Block {
  readonly der: Buffer;
  /** Where it was found, as in `ca.crl:12`. */
  readonly at: string;
}

/** The lists of a file as DER. A file of PEM is searched and decoded in pieces. */
async function blocksIn(contents: Buffer, from: string): Promise<readonly Block[]> {
  if (contents.length === 0) throw new PemError("wrong-kind", `${from}: is empty; jobsctl certs crl makes a list`);
  const [begin, end] = ["-----BEGIN X509 CRL-----", "-----END X509 CRL-----"];
  const found: Block[] = [];
  for (let at = contents.indexOf(begin); at >= 0; at = contents.indexOf(begin, at)) {
    const [start, stop] = [at + begin.length, contents.indexOf(end, at)];
    if (stop < 0) throw malformed(from, "a list begins with -----BEGIN X509 CRL----- and does not end");
    found.push({ der: await decoded(contents.subarray(start, stop), from), at: `${from}, list ${found.length + 1}` });
    at = stop;
  }
  if (found.length > 0) return found;
  if (contents.includes("-----BEGIN ")) {
    throw new PemError("wrong-kind", `${from}: holds no -----BEGIN X509 CRL-----; jobsctl certs crl makes a list`);
  }
  for (let at = 0; at < contents.length;) {
    const element = elementAt(contents, at);
    if (element?.tag !== SEQUENCE) throw malformed(from, "is no list of revoked certificates in PEM or DER");
    found.push({ der: contents.subarray(at, element.end), at: from });
    at = element.end;
  }
  return found;
}

async function decoded(base64: Buffer, from: string): Promise<Buffer> {
  const turn = turns();
  const pieces: Buffer[] = [];
  let rest = "";
  for (let at = 0; at < base64.length; at += PIECE_BYTES) {
    await turn();
    const text = rest + base64.toString("latin1", at, at + PIECE_BYTES).replaceAll(/\s+/g, "");
    const whole = text.length - (text.length % 4);
    pieces.push(Buffer.from(text.slice(0, whole), "base64"));
    rest = text.slice(whole);
  }
  if (rest !== "") throw malformed(from, "a list is not base64 to its end");
  return Buffer.concat(pieces);
}

/** The parts of a list, of which only the outermost are decoded. */
interface Outline {
  readonly signed: Uint8Array;
  readonly signature: Uint8Array;
  readonly algorithmHex: string;
  readonly issuer: Element;
  readonly thisUpdate: Date;
  readonly nextUpdate: Date;
  /** The content of the SEQUENCE of revoked certificates. */
  readonly revoked: Uint8Array;
  readonly extensions: ReturnType<typeof extensionsIn>;
}

function outlineOf(der: Buffer, at: string): Outline {
  const damaged = (why: string): never => {
    throw malformed(at, `the list is damaged: ${why}`);
  };
  const outer = elementAt(der, 0);
  if (outer?.tag !== SEQUENCE || outer.end !== der.length) return damaged("it is cut short, or more follows");
  const toBeSigned = elementAt(outer.content, 0);
  const [algorithm, signature, ...more] = (toBeSigned && elements(outer.content.subarray(toBeSigned.end))) ?? [];
  if (!toBeSigned || !algorithm || signature?.tag !== BIT_STRING || signature.content[0] !== 0 || more.length > 0)
    return damaged("its parts are not those of a list");
  const fields = sequence([toBeSigned])?.slice() ?? [];
  const version = fields[0]?.tag === INTEGER ? fields.shift()?.content[0] : 0;
  const [inner, issuer, thisUpdate, nextUpdate] = fields.splice(0, 4);
  const revoked = fields[0]?.tag === SEQUENCE ? fields.shift()?.content : undefined;
  const tagged = fields[0]?.tag === CRL_EXTENSIONS ? fields.shift() : undefined;
  const known = tagged ? extensionsIn(elements(tagged.content)) : [];
  if (version === undefined || version > 1 || !inner || !issuer || !thisUpdate || fields.length > 0 || !known)
    return damaged("its parts are not those of a list");
  if (!Buffer.from(inner.content).equals(algorithm.content)) return damaged("it names two algorithms of signature");
  const [oid] = elements(algorithm.content) ?? [];
  if (!nextUpdate || ![UTC_TIME, GENERALIZED_TIME].includes(nextUpdate.tag))
    return damaged("it does not say when the next one comes (nextUpdate)");
  return {
    signed: outer.content.subarray(0, toBeSigned.end),
    signature: signature.content.subarray(1),
    algorithmHex: Buffer.from(oid?.content ?? []).toString("hex"),
    issuer,
    thisUpdate: timeOf(thisUpdate) ?? damaged("its time cannot be read"),
    nextUpdate: timeOf(nextUpdate) ?? damaged("the time of the next one cannot be read"),
    revoked: revoked ?? new Uint8Array(),
    extensions: known,
  };
}

/** Returns which of these CAs, all of the list's issuer's name, has signed it. */
async function signerOf(
  { signed, signature, algorithmHex }: Outline,
  namesakes: readonly X509Certificate[],
  at: string,
): Promise<X509Certificate> {
  const algorithm = ALGORITHMS.get(algorithmHex);
  if (algorithm === undefined) {
    const wanted = "RSA (PKCS #1) or ECDSA with SHA-256, SHA-384 or SHA-512, and Ed25519 are accepted";
    throw new PemError("unsupported", `${at}: the list is signed with the algorithm ${algorithmHex}; ${wanted}`);
  }
  for (const certificate of namesakes) {
    const matches = await verifyAside(algorithm, signed, certificate.publicKey, signature);
    if (!matches) continue;
    if (maySignLists(certificate)) return certificate;
    const why = "whose key usage has no cRLSign";
    throw new PemError("unsupported", `${at}: the list is signed by ${nameOf(certificate)}, ${why}`);
  }
  const [certificate] = namesakes;
  const name = certificate && nameOf(certificate);
  throw new PemError("mismatch", `${at}: the list is damaged, or signed by another CA of the same name, ${name}`);
}

/** Verifies in a thread of its own. A signature that cannot be looked at matches nothing. */
function verifyAside(
  algorithm: string | null,
  bytes: Uint8Array,
  key: X509Certificate["publicKey"],
  signature: Uint8Array,
): Promise<boolean> {
  return new Promise((resolve) => {
    verify(algorithm, bytes, key, signature, (error, matches) => resolve(!error && matches));
  });
}

/** Whether a CA may sign lists: its key usage has cRLSign, or it has no key usage (RFC 5280, 6.3.3, (f)). */
export function maySignLists(certificate: X509Certificate): boolean {
  const usage = extensions(certificate.raw)?.find(({ oidHex }) => oidHex === KEY_USAGE);
  const [bits] = (usage && elements(usage.value)) ?? [];
  return !usage || ((bits?.content[1] ?? 0) & CRL_SIGN) !== 0;
}

async function crlOf(outline: Outline, signer: X509Certificate, at: string): Promise<Crl> {
  const number = numberOf(outline, at);
  return {
    ca: caKey(signer),
    issuer: nameOf(signer),
    ...(number !== undefined && { number }),
    thisUpdate: outline.thisUpdate,
    nextUpdate: outline.nextUpdate,
    serials: await serialsIn(outline.revoked, at),
    signature: Buffer.from(outline.signature).toString("base64"),
  };
}

/** The list's number. Throws PemError for a list that is not about all certificates of its issuer. */
function numberOf({ extensions: found = [] }: Outline, at: string): bigint | undefined {
  let number: bigint | undefined;
  for (const { oidHex, critical, value } of found) {
    if (oidHex === DELTA_INDICATOR) throw unusable(at, "is a delta, which tells of changes alone");
    if (oidHex === DISTRIBUTION_POINT) throw unusable(at, "is about a part of its CA's certificates, or indirect");
    if (oidHex === CRL_NUMBER) {
      const [integer, ...more] = elements(value) ?? [];
      const bytes = integer?.tag === INTEGER && more.length === 0 ? integer.content : new Uint8Array();
      const hex = Buffer.from(bytes).toString("hex");
      if (bytes.length === 0 || bytes.length > MAX_NUMBER_BYTES || (bytes[0] ?? 0) >= 0x80 || number !== undefined)
        throw malformed(at, "the list is damaged: its number cannot be read");
      number = BigInt(`0x${hex}`);
    } else if (critical) throw unusable(at, `has a critical extension (${oidHex}) that is not known here`);
  }
  return number;
}

/** The serial numbers of the revoked, found in pieces. */
async function serialsIn(revoked: Uint8Array, at: string): Promise<ReadonlySet<string>> {
  const turn = turns();
  const serials = new Set<string>();
  let count = 0;
  for (let from = 0; from < revoked.length; count++) {
    if (count % 64 === 0) await turn();
    const entry = elementAt(revoked, from);
    const serial = entry?.tag === SEQUENCE ? elementAt(entry.content, 0) : undefined;
    const date = entry && serial && elementAt(entry.content, serial.end);
    if (serial?.tag !== INTEGER || serial.content.length === 0 || !date || !hasTimeShape(date))
      throw malformed(at, `the list is damaged: entry ${count + 1} is not a serial number and a time`);
    if (date.end < entry.content.length) requireKnown(entry.content.subarray(date.end), count + 1, at);
    serials.add(serialKey(serial.content));
    from = entry.end;
  }
  return serials;
}

/** Throws PemError for an entry's extension that would have to be understood. */
function requireKnown(bytes: Uint8Array, entry: number, at: string): void {
  const found = extensionsIn(elements(bytes));
  if (!found) throw malformed(at, `the list is damaged: entry ${entry} has extensions that cannot be read`);
  for (const { oidHex, critical } of found) {
    if (oidHex === CERTIFICATE_ISSUER) throw unusable(at, "is indirect: it has certificates of other CAs");
    if (critical) throw unusable(at, `has in entry ${entry} a critical extension (${oidHex}) that is not known here`);
  }
}

/** Whether a value is as long as a time of its type. The times of a hundred thousand entries, which nobody asks for, are not read. */
function hasTimeShape({ tag, content }: Element): boolean {
  return content.length === (tag === UTC_TIME ? 13 : tag === GENERALIZED_TIME ? 15 : -1);
}

/** The time of a UTCTime or GeneralizedTime, each with seconds and in UTC (RFC 5280, 4.1.2.5). */
function timeOf({ tag, content }: Element): Date | undefined {
  const text = Buffer.from(content.buffer, content.byteOffset, content.length).toString("latin1");
  const digits = tag === UTC_TIME ? `${text < "50" ? "20" : "19"}${text}` : tag === GENERALIZED_TIME ? text : "";
  const [, year, month, day, hour, minute, second] = /^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z$/.exec(digits) ?? [];
  if (year === undefined) return undefined;
  const iso = `${year}-${month}-${day}T${hour}:${minute}:${second}.000Z`;
  const time = new Date(iso);
  // A day that does not exist, as February 30, would be one of the next month.
  return !Number.isNaN(time.getTime()) && time.toISOString() === iso ? time : undefined;
}

function malformed(at: string, why: string): PemError {
  return new PemError("malformed", `${at}: ${why}`);
}

function unusable(at: string, why: string): PemError {
  return new PemError("unsupported", `${at}: the list ${why}; a whole list of one CA is needed`);
}

function tooLarge(path: string): PemError {
  return new PemError("unreadable", `${path}: is over ${LIMIT_BYTES / 1024 ** 2} MiB; no list that large is read`);
}
