import type { X509Certificate } from "node:crypto";
import type { Logger } from "pino";
import { linksOf } from "./revocation.ts";
import type { ServerCertificate } from "./meter.ts";
import { problemsOf } from "./pem.ts";
import { caKey, type Crl } from "../x509/crl.ts";
import { nameOf, type TlsFiles } from "../x509/pem.ts";

/** What the server has in hand: its own files, and the lists of revoked certificates unless nobody asked for any. */
export interface InHand {
  readonly files: TlsFiles;
  readonly lists?: readonly Crl[] | undefined;
}

/** Lists what the server depends on that ends by itself, each thing once. */
export function certificatesOf({ files, lists = [] }: InHand): readonly ServerCertificate[] {
  const { own, chain, authorities } = files;
  const others = [...chain, ...authorities].filter(
    ({ raw }, at, all) => !raw.equals(own.raw) && all.findIndex((one) => one.raw.equals(raw)) === at,
  );
  const told = (use: "worker" | "ca", certificate: X509Certificate): ServerCertificate => {
    return { use, subject: nameOf(certificate), notAfter: certificate.validToDate };
  };
  return [
    told("worker", own),
    ...others.map((certificate) => told("ca", certificate)),
    ...lists.map(({ issuer, nextUpdate }) => ({ use: "crl" as const, subject: issuer, notAfter: nextUpdate })),
  ];
}

/** A reason for which clients refuse the server, or it refuses them, now or soon. */
interface Trouble {
  /** Names the certificate or the list. */
  readonly subject: string;
  readonly message: string;
}

/** Whether the server's certificates and lists will do, in the words of a doctor. */
export interface CertificateFinding {
  readonly area: "certificate";
  readonly name: "worker's" | "revoked";
  readonly state: "enforced" | "limited";
  readonly meaning: string;
  readonly reason?: string;
  readonly remedy?: string;
}

/** Tells what of certificates and lists has expired or will soon, and for how long they hold where all is well. */
export function findingsOf(inHand: InHand, nowMs = Date.now()): readonly CertificateFinding[] {
  const { files, lists } = inHand;
  const until = (date: Date): string => `until ${date.toISOString().slice(0, 10)}`;
  const own = ownTroubles(files, nowMs).map(({ message }) => limited("worker's", "clients may refuse it", message));
  const holds = enforced("worker's", `${nameOf(files.own)}, ${until(files.own.validToDate)}`);
  const found = own.length > 0 ? own : [holds];
  if (!lists) return found;
  const faults = [...listTroubles(files, lists, nowMs)].map(({ message }) =>
    limited("revoked", "clients may be refused", message, "sign a new list: jobsctl certs crl"),
  );
  const known = lists.map(({ issuer, serials, nextUpdate }) => `${serials.size} by ${issuer}, ${until(nextUpdate)}`);
  return [...found, ...(faults.length > 0 ? faults : [enforced("revoked", known.join("; "))])];
}

function enforced(name: CertificateFinding["name"], meaning: string): CertificateFinding {
  return { area: "certificate", name, state: "enforced", meaning };
}

function limited(
  name: CertificateFinding["name"],
  meaning: string,
  reason: string,
  remedy?: string,
): CertificateFinding {
  return { area: "certificate", name, state: "limited", meaning, reason, ...(remedy !== undefined && { remedy }) };
}

/** Finds what has expired, is revoked or missing, and what will be soon. */
function troublesOf({ files, lists }: InHand, nowMs = Date.now()): readonly Trouble[] {
  const own = ownTroubles(files, nowMs);
  return lists ? [...own, ...listTroubles(files, lists, nowMs)] : own;
}

function ownTroubles(files: TlsFiles, nowMs: number): readonly Trouble[] {
  return problemsOf(files, nowMs).map(({ certificate, message }) => ({
    subject: `${nameOf(certificate)}, serial ${certificate.serialNumber}`,
    message,
  }));
}

/** Tells the log of what has expired, is revoked or missing, and of what will be soon. */
export function warnOf(inHand: InHand, log: Logger): void {
  for (const { subject, message } of troublesOf(inHand)) log.warn({ certificate: subject }, message);
}

function* listTroubles(
  { authorities, chain }: TlsFiles,
  lists: readonly Crl[],
  nowMs: number,
): Generator<Trouble, void, void> {
  for (const { issuer, number, thisUpdate, nextUpdate } of lists) {
    const subject = `list of ${issuer}, number ${number ?? "unknown"}`;
    const [end, leftMs] = [nextUpdate.toISOString(), nextUpdate.getTime() - nowMs];
    if (leftMs < 0) yield { subject, message: `the list of revoked certificates of ${issuer} expired at ${end}` };
    else if (leftMs < (nextUpdate.getTime() - thisUpdate.getTime()) / 4)
      yield { subject, message: `the list of revoked certificates of ${issuer} expires at ${end}` };
  }
  for (const authority of authorities) {
    if (lists.some(({ ca }) => ca === caKey(authority))) continue;
    const name = nameOf(authority);
    yield { subject: name, message: `there is no list of revoked certificates of ${name}` };
  }
  for (const { ca, serial, name } of linksOf(chain, authorities))
    if (lists.some((list) => list.ca === ca && list.serials.has(serial)))
      yield { subject: name, message: `the worker's own chain is revoked: ${name} is on its CA's list` };
}
