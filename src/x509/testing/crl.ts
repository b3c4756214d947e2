import { type KeyObject, sign, X509Certificate } from "node:crypto";
import { subjectOf } from "../der.ts";

export interface CrlOptions {
  /** The serial numbers, as contents of INTEGERs in hex. */
  readonly serials?: Iterable<string>;
  /** undefined leaves the number out, and makes a list without extensions one of version 1. */
  readonly number?: number | undefined;
  readonly thisUpdate?: Date;
  /** null leaves it out. */
  readonly nextUpdate?: Date | null;
  /** More extensions of the list and of its first entry, as DER. */
  readonly extensions?: readonly Buffer[];
  readonly entryExtensions?: readonly Buffer[];
  /** Encodes a time. */
  readonly time?: (date: Date) => Buffer;
  /** Its issuer's DER; that of the CA when absent. */
  readonly issuer?: Buffer;
}

const HOUR_MS = 3_600_000;
const ALGORITHM = der(0x30, Buffer.from("06092a864886f70d01010b0500", "hex"));

/** Makes a list with an RSA key, right or wrong as the options say. Returns its DER. */
export function crlOf(ca: X509Certificate, key: KeyObject, options: CrlOptions = {}): Buffer {
  const { serials = [], thisUpdate = new Date(Date.now() - HOUR_MS), nextUpdate, time = utc } = options;
  const subject = subjectOf(ca.raw);
  const number = "number" in options ? options.number : 1;
  const extensions = [
    ...(number === undefined ? [] : [extension("551d14", Buffer.of(0x02, 0x02, number >> 8, number & 0xff))]),
    ...(options.extensions ?? []),
  ];
  const date = time(thisUpdate);
  const entries = [...serials].map((serial, at) =>
    der(
      0x30,
      der(0x02, Buffer.from(serial, "hex")),
      date,
      at === 0 && options.entryExtensions ? der(0x30, ...options.entryExtensions) : Buffer.alloc(0),
    ),
  );
  const toBeSigned = der(
    0x30,
    extensions.length > 0 ? Buffer.of(0x02, 0x01, 0x01) : Buffer.alloc(0),
    ALGORITHM,
    options.issuer ?? der(0x30, subject?.content ?? Buffer.alloc(0)),
    date,
    nextUpdate === null ? Buffer.alloc(0) : time(nextUpdate ?? new Date(Date.now() + HOUR_MS)),
    entries.length > 0 ? der(0x30, ...entries) : Buffer.alloc(0),
    extensions.length > 0 ? der(0xa0, der(0x30, ...extensions)) : Buffer.alloc(0),
  );
  return der(0x30, toBeSigned, ALGORITHM, der(0x03, Buffer.of(0), sign("sha256", toBeSigned, key)));
}

/** An extension of a list or an entry; `value` is the content of its OCTET STRING. */
export function extension(oidHex: string, value: Buffer, critical = false): Buffer {
  const flag = critical ? Buffer.of(0x01, 0x01, 0xff) : Buffer.alloc(0);
  return der(0x30, der(0x06, Buffer.from(oidHex, "hex")), flag, der(0x04, value));
}

export function pemOf(crl: Buffer): Buffer {
  const base64 = crl.toString("base64").replaceAll(/.{1,64}/g, "$&\n");
  return Buffer.from(`-----BEGIN X509 CRL-----\n${base64}-----END X509 CRL-----\n`);
}

export function der(tag: number, ...parts: readonly Uint8Array[]): Buffer {
  const content = Buffer.concat(parts);
  const hex = content.length.toString(16);
  const length = Buffer.from(hex.length % 2 === 0 ? hex : `0${hex}`, "hex");
  return Buffer.concat([
    Buffer.of(tag),
    content.length < 0x80 ? length : Buffer.of(0x80 | length.length, ...length),
    content,
  ]);
}

export function utc(date: Date): Buffer {
  return der(0x17, Buffer.from(digits(date).slice(2)));
}

export function generalized(date: Date): Buffer {
  return der(0x18, Buffer.from(digits(date)));
}

function digits(date: Date): string {
  return date.toISOString().replaceAll(/[-:T]|\.\d+/g, "");
}
