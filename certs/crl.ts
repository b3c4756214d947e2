import "reflect-metadata";
import { sign, type X509Certificate } from "node:crypto";
import { type Extension, X509Crl } from "@peculiar/x509";
import { codeOf } from "../src/os/errno.ts";
import { type Crl, crlsIn, maySignLists, readCrlFile } from "../src/x509/crl.ts";
import { subjectOf } from "../src/x509/der.ts";
import { PemError, pemBlocks } from "../src/x509/pem.ts";
import { type Authority, authorityKeyId, BACKDATE_MS, DAY_MS, nodeCertificate } from "./authority.ts";
import { type CaIndex, indexOf, noteCrl, readIndex } from "./ca-index.ts";
import { CertError } from "./error.ts";
import { type CaFiles, writeFiles } from "./files.ts";
import { REASONS } from "./reason.ts";

/** A list that was written. */
export interface WrittenCrl {
  readonly path: string;
  readonly number: number;
  readonly revoked: number;
  /** ISO 8601. Clients are refused when no other list has come by then. */
  readonly until: string;
}

/** How long a list holds when neither the caller nor the list before it says. */
const CRL_DAYS = 30;
const MOST_DAYS = 365;

/**
 * Signs the list of what a CA has revoked, and puts it in the place of the one before it, whose entries stay in it until
 * their certificates have expired (RFC 5280, 3.3). Throws CertError.
 *
 * @param days how long it holds; as long as the one before it when absent
 */
export async function writeCrl(
  files: CaFiles,
  authority: Authority,
  { days, now = new Date() }: { readonly days?: number | undefined; readonly now?: Date | undefined } = {},
): Promise<WrittenCrl> {
  if (days !== undefined && (!Number.isInteger(days) || days < 1 || days > MOST_DAYS))
    throw new CertError("invalid", `--days: ${days} must be a whole number from 1 to ${MOST_DAYS}`);
  const node = nodeCertificate(authority.certificate);
  if (!maySignLists(node))
    throw new CertError("refused", `${files.crt}: this CA signs no lists: its key usage has no cRLSign`);
  const place = indexOf(files, node);
  await noteCrl(place, now);
  for (;;) {
    const [index, before] = [await readIndex(place), await listBefore(files.crl, authority)];
    const revoked = allRevoked(index, before);
    const lifeMs = days === undefined ? (before?.lifeMs ?? CRL_DAYS * DAY_MS) : days * DAY_MS;
    const list = {
      number: Math.max(index.lines, (before?.number ?? 0) + 1),
      thisUpdate: new Date(now.getTime() - BACKDATE_MS),
      nextUpdate: new Date(now.getTime() - BACKDATE_MS + lifeMs),
      revoked,
    };
    await writeFiles([{ path: files.crl, text: await signCrl(authority, list), mode: 0o644 }], true);
    // Another signer may have revoked something meanwhile, and have written its list before this one.
    if ((await readIndex(place)).lines > index.lines) continue;
    const until = list.nextUpdate.toISOString().replace(/\.\d+/, ".000");
    return { path: files.crl, number: list.number, revoked: revoked.length, until };
  }
}

interface Revoked {
  /** The serial number in hexadecimal. */
  readonly serial: string;
  readonly at: Date;
  readonly reason: number;
}

interface ListBefore {
  readonly number: number;
  readonly lifeMs: number;
  readonly thisUpdate: Date;
  readonly revoked: readonly Revoked[];
}

/** The file of a CA's list; undefined when it is not there. Throws PemError `unreadable`. */
export async function existingCrl(path: string): Promise<Buffer | undefined> {
  return readCrlFile(path).catch((error: unknown) => {
    if (error instanceof PemError && codeOf(error.cause) === "ENOENT") return undefined;
    throw error;
  });
}

/**
 * Reads the lists that these CAs have signed, none when the file is not there. Throws CertError for a file of which not all is
 * known.
 */
export async function listsIn(path: string, authorities: readonly X509Certificate[]): Promise<readonly Crl[]> {
  try {
    const contents = await existingCrl(path);
    return contents ? (await crlsIn(contents, path, authorities)).lists : [];
  } catch (error) {
    throw error instanceof PemError ? unreliable(error) : error;
  }
}

function unreliable(error: PemError): CertError {
  return new CertError("unreadable", `${error.message}; move it away, where it is not needed`, error);
}

/** Reads the list that is there; undefined when there is none, or one of another CA. */
async function listBefore(path: string, authority: Authority): Promise<ListBefore | undefined> {
  try {
    const contents = await existingCrl(path);
    const [list] = contents ? (await crlsIn(contents, path, [nodeCertificate(authority.certificate)])).lists : [];
    if (!contents || !list) return undefined;
    const { thisUpdate, nextUpdate, number = 0n } = list;
    const der = pemBlocks(contents, path).find(({ label }) => label === "X509 CRL")?.der ?? contents;
    const revoked = new X509Crl(der).entries.map(({ serialNumber, revocationDate, reason = 0 }) => {
      return { serial: serialIn(serialNumber), at: revocationDate, reason };
    });
    return { number: Number(number), lifeMs: nextUpdate.getTime() - thisUpdate.getTime(), thisUpdate, revoked };
  } catch (error) {
    if (!(error instanceof PemError)) throw error;
    if (error.code === "mismatch") return undefined;
    throw unreliable(error);
  }
}

/** All that the index or the list before calls revoked, but for certificates that had expired when that list was signed. */
function allRevoked({ entries }: CaIndex, before: ListBefore | undefined): readonly Revoked[] {
  const found = new Map(before?.revoked.map((each) => [each.serial, each]));
  for (const { serial, revoked } of entries.values())
    if (revoked) found.set(serial, { serial, at: new Date(revoked.at), reason: REASONS[revoked.reason] });
  return [...found.values()].filter(({ serial }) => {
    const until = entries.get(serial)?.until;
    return !until || !before || new Date(until) > before.thisUpdate;
  });
}

/**
 * A serial number in hexadecimal as Node writes it: whole bytes, capitals, without zeros in front. Throws CertError `invalid`
 * for text that is none.
 */
export function serialIn(text: string): string {
  const digits = text.replace(/^0x/i, "").replaceAll(":", "").toUpperCase();
  if (!/^[0-9A-F]{1,80}$/.test(digits)) {
    throw new CertError("invalid", `${JSON.stringify(text)} is neither a file nor a serial number in hexadecimal`);
  }
  return whole(digits.replace(/^0+/, "") || "0");
}

/** Hexadecimal digits of whole bytes. */
function whole(hex: string): string {
  return hex.length % 2 === 0 ? hex : `0${hex}`;
}

interface UnsignedCrl {
  readonly number: number;
  readonly thisUpdate: Date;
  readonly nextUpdate: Date;
  readonly revoked: readonly Revoked[];
}

/** sha256WithRSAEncryption, with its NULL. */
const ALGORITHM = Buffer.from("300d06092a864886f70d01010b0500", "hex");
/** 2.5.29.20 and 2.5.29.21. */
const [CRL_NUMBER, REASON_CODE] = [Buffer.from("0603551d14", "hex"), Buffer.from("0603551d15", "hex")];
const V2 = Buffer.from("020101", "hex");

/**
 * Signs a list of version 2 (RFC 5280, 5.1), in PEM. The library's own generator gives entries without a reason empty
 * extensions, which openssl refuses, and takes seconds for thousands.
 */
async function signCrl({ certificate, key }: Authority, list: UnsignedCrl): Promise<string> {
  const issuer = subjectOf(new Uint8Array(certificate.rawData));
  if (!issuer) throw new CertError("unreadable", "the CA's certificate has no subject");
  const entries = list.revoked.map(({ serial, at, reason }) => {
    const why = der(0x30, der(0x30, REASON_CODE, der(0x04, der(0x0a, Buffer.of(reason)))));
    return der(0x30, integer(serial), time(at), reason === 0 ? Buffer.alloc(0) : why);
  });
  const number = der(0x30, CRL_NUMBER, der(0x04, integer(list.number.toString(16))));
  const keyId: Extension = await authorityKeyId(certificate);
  const toBeSigned = der(
    0x30,
    V2,
    ALGORITHM,
    der(issuer.tag, issuer.content),
    time(list.thisUpdate),
    time(list.nextUpdate),
    entries.length > 0 ? der(0x30, ...entries) : Buffer.alloc(0),
    der(0xa0, der(0x30, new Uint8Array(keyId.rawData), number)),
  );
  const signature = der(0x03, Buffer.of(0), sign("sha256", toBeSigned, key));
  const base64 = der(0x30, toBeSigned, ALGORITHM, signature).toString("base64");
  return `-----BEGIN X509 CRL-----\n${base64.replaceAll(/.{1,64}/g, "$&\n")}-----END X509 CRL-----\n`;
}

/** A value of DER, its length in the shortest form. */
function der(tag: number, ...parts: readonly Uint8Array[]): Buffer {
  const content = Buffer.concat(parts);
  const bytes = Buffer.from(whole(content.length.toString(16)), "hex");
  const length = content.length < 0x80 ? bytes : Buffer.concat([Buffer.of(0x80 | bytes.length), bytes]);
  return Buffer.concat([Buffer.of(tag), length, content]);
}

/** A number of whole bytes in hexadecimal as a positive INTEGER. */
function integer(hex: string): Buffer {
  const bytes = Buffer.from(whole(hex), "hex");
  return der(0x02, (bytes[0] ?? 0) < 0x80 ? bytes : Buffer.concat([Buffer.of(0), bytes]));
}

/** UTCTime until 2049, GeneralizedTime from then on (RFC 5280, 4.1.2.5). */
function time(date: Date): Buffer {
  const text = date.toISOString().replaceAll(/[-:T]|\.\d+/g, "");
  return date.getUTCFullYear() < 2050 ? der(0x17, Buffer.from(text.slice(2))) : der(0x18, Buffer.from(text));
}
