import { stat } from "node:fs/promises";
import { certificatesIn, nameOf } from "../src/x509/pem.ts";
import { openAuthority, nodeCertificate } from "./authority.ts";
import { type IndexEntry, type IndexPlace, indexOf, noteRevoked, readIndex } from "./ca-index.ts";
import { serialIn, type WrittenCrl, writeCrl } from "./crl.ts";
import { CertError } from "./error.ts";
import { caFiles, readFrom } from "./files.ts";
import { describe } from "./inspect.ts";
import { parseReason } from "./reason.ts";

export interface RevokeOptions {
  /** A certificate's file, or its serial number in hexadecimal. */
  readonly certificate: string;
  readonly ca: string;
  readonly caKey?: string | undefined;
  /** One of RFC 5280's words; `unspecified` when absent. */
  readonly reason?: string | undefined;
  /** Revokes a serial number that the index does not know, too. */
  readonly force?: boolean | undefined;
  readonly now?: Date | undefined;
}

export interface RevokedCertificate {
  readonly certificate: Required<Pick<IndexEntry, "serial" | "revoked">> & Partial<IndexEntry>;
  /** Whether it was revoked before; the first time and its reason stand. */
  readonly already: boolean;
  readonly crl: WrittenCrl;
}

/** Revokes a certificate, and writes the CA's list anew. Throws CertError. */
export async function revoke(options: RevokeOptions): Promise<RevokedCertificate> {
  const { certificate, force = false, now = new Date() } = options;
  const reason = parseReason(options.reason ?? "unspecified");
  const files = await caFiles(options.ca, options.caKey);
  const authority = await openAuthority(files.crt, files.key);
  const place = indexOf(files, nodeCertificate(authority.certificate));
  const entry = (await isFile(certificate))
    ? await entryOf(certificate, nodeCertificate(authority.certificate))
    : await entryIn(place, serialIn(certificate), force);
  const known = (await readIndex(place)).entries.get(entry.serial);
  const revoked = known?.revoked ?? { at: now.toISOString(), reason };
  if (!known?.revoked) await noteRevoked(place, entry, revoked);
  const crl = await writeCrl(files, authority, { now });
  return { certificate: { ...known, ...entry, revoked }, already: known?.revoked !== undefined, crl };
}

async function isFile(path: string): Promise<boolean> {
  return stat(path).then(
    (found) => !found.isDirectory(),
    () => false,
  );
}

async function entryOf(path: string, authority: ReturnType<typeof nodeCertificate>) {
  const [{ certificate }] = await readFrom(path, certificatesIn);
  if (certificate.raw.equals(authority.raw))
    throw new CertError(
      "refused",
      `${path}: is the CA itself; to end a CA, take it out of --ca of its workers and clients`,
    );
  if (!certificate.checkIssued(authority) || !certificate.verify(authority.publicKey)) {
    const issuer = certificate.issuer.replaceAll("\n", ", ");
    throw new CertError("refused", `${path}: ${nameOf(certificate)} is signed by ${issuer}, and not by this CA`);
  }
  const { serial, subject, role, notAfter: until } = describe(certificate, path);
  if (!/^[0-9A-F]+$/.test(serial))
    throw new CertError(
      "refused",
      `${path}: its serial number is not positive, which no list can be relied on to have`,
    );
  return { serial: serialIn(serial), subject, role: role ?? "worker", until };
}

async function entryIn(place: IndexPlace, serial: string, force: boolean) {
  const known = (await readIndex(place)).entries.get(serial);
  if (known || force) return known ?? { serial };
  const remedy = "check it, give the certificate's file, or revoke it all the same with --force";
  throw new CertError("refused", `${serial}: the index ${place.path} knows no such serial number; ${remedy}`);
}
