import "reflect-metadata";
import type { KeyObject, X509Certificate } from "node:crypto";
import {
  ExtendedKeyUsage,
  ExtendedKeyUsageExtension,
  type JsonGeneralName,
  Pkcs10CertificateRequest,
  SubjectAlternativeNameExtension,
} from "@peculiar/x509";
import { certificatesIn, nameOf } from "../src/x509/pem.ts";
import { parseCertificate } from "./authority.ts";
import { readFrom } from "./files.ts";
import { type Role, roleOf } from "./profile.ts";
import { parseRequest } from "./request.ts";

export interface KeyDescription {
  /** The algorithm, such as `rsa`. */
  readonly type: string;
  /** The modulus of an RSA key. */
  readonly bits?: number;
}

/** The contents of a certificate. */
export interface CertificateDescription {
  readonly kind: "certificate";
  /** The holder's name, such as `CN=worker`. */
  readonly subject: string;
  readonly issuer: string;
  /** The serial number in hexadecimal. */
  readonly serial: string;
  /** The SHA-256 of the DER, in hexadecimal with colons. */
  readonly fingerprint: string;
  /** ISO 8601, as are all times here. */
  readonly notBefore: string;
  readonly notAfter: string;
  /** Whole days; negative once it has expired. */
  readonly daysLeft: number;
  readonly ca: boolean;
  /** Absent when it has none; `malformed` would be refused by the daemon. */
  readonly role?: Role | "malformed";
  /** Subject alternative names: `localhost`, `127.0.0.1`; those of other kinds as `email:…`. */
  readonly hosts: readonly string[];
  /** `serverAuth`, `clientAuth`, or an object identifier; empty when it may be used for anything. */
  readonly usages: readonly string[];
  readonly key: KeyDescription;
  /** Subjects of the certificates behind it in its file. */
  readonly chain?: readonly string[];
}

/** The contents of a certificate signing request whose signature has been verified. */
export interface RequestDescription {
  readonly kind: "request";
  readonly subject: string;
  /** Absent when it asks for none. `jobsctl certs sign` ignores it; other signers may copy it. */
  readonly role?: Role | "malformed";
  readonly hosts: readonly string[];
  readonly key: KeyDescription;
}

export type Description = CertificateDescription | RequestDescription;

const DAY_MS = 86_400_000;

/** Reads a file with certificates or a request. Throws CertError `unreadable`, or `refused` for a bad request. */
export async function inspectFile(path: string, now = new Date()): Promise<Description> {
  const contents = await readFrom(path, (bytes) => bytes);
  if (!isRequest(contents)) {
    const [{ certificate }, ...behind] = await readFrom(path, certificatesIn);
    const chain = behind.map(({ certificate }) => nameOf(certificate));
    return { ...describe(certificate, path, now), ...(chain.length > 0 && { chain }) };
  }
  const request = await parseRequest(contents, path);
  return {
    kind: "request",
    subject: `CN=${request.commonName}`,
    ...(request.role && { role: request.role }),
    hosts: hostsOf(request.altNames),
    key: describeKey(request.publicKey),
  };
}

/** Describes a certificate. Throws CertError `unreadable`, led by `from`. */
export function describe(given: string | X509Certificate, from: string, now = new Date()): CertificateDescription {
  const { node, certificate } = parseCertificate(given, from);
  const role = roleOf(certificate.extensions);
  return {
    kind: "certificate",
    subject: certificate.subject,
    issuer: certificate.issuer,
    serial: node.serialNumber,
    fingerprint: node.fingerprint256,
    notBefore: node.validFromDate.toISOString(),
    notAfter: node.validToDate.toISOString(),
    daysLeft: Math.floor((node.validToDate.getTime() - now.getTime()) / DAY_MS),
    ca: node.ca,
    ...(role && { role }),
    hosts: hostsOf(certificate.getExtension(SubjectAlternativeNameExtension)?.names.toJSON() ?? []),
    usages: (certificate.getExtension(ExtendedKeyUsageExtension)?.usages ?? []).map(usageName),
    key: describeKey(node.publicKey),
  };
}

/** A description for people, one fact a line. The caller has to escape a stranger's characters before printing. */
export function format(described: Description): string[] {
  const { subject, hosts, key } = described;
  const rows: (readonly [string, string | undefined])[] =
    described.kind === "certificate"
      ? [
          ["subject", subject],
          ["issuer", described.issuer],
          ["serial", described.serial],
          ["fingerprint", `SHA-256 ${described.fingerprint}`],
          ["valid", `${described.notBefore} to ${described.notAfter}, ${lifeLeft(described.daysLeft)}`],
          ["authority", described.ca ? "yes, it may sign certificates" : undefined],
          ["role", described.role],
          ["hosts", hosts.join(", ")],
          ["usage", described.usages.join(", ") || "any"],
          ["key", formatKey(key)],
          ["behind it", described.chain?.join("; ")],
        ]
      : [
          ["request of", subject],
          [
            "asks for",
            described.role && `role ${described.role}; jobsctl certs sign decides by --role, openssl by its signer`,
          ],
          ["hosts", hosts.join(", ")],
          ["key", formatKey(key)],
        ];
  return rows.flatMap(([label, value]) => (value ? [label.padEnd(12) + value] : []));
}

function isRequest(contents: Buffer): boolean {
  if (contents.includes("-----BEGIN "))
    return /-----BEGIN (NEW )?CERTIFICATE REQUEST-----/.test(contents.toString("latin1"));
  try {
    // A certificate and a request begin alike in DER.
    return new Pkcs10CertificateRequest(contents).subject !== undefined;
  } catch {
    return false;
  }
}

function lifeLeft(days: number): string {
  if (days < 0) return "expired";
  return days === 1 ? "1 day left" : `${days} days left`;
}

function formatKey({ type, bits }: KeyDescription): string {
  return bits ? `${type.toUpperCase()} ${bits}` : type;
}

function hostsOf(names: readonly JsonGeneralName[]): string[] {
  return names.map(({ type, value }) => (type === "dns" || type === "ip" ? value : `${type}:${value}`));
}

function usageName(oid: unknown): string {
  return Object.entries(ExtendedKeyUsage).find(([, value]) => value === oid)?.[0] ?? String(oid);
}

function describeKey(key: KeyObject): KeyDescription {
  const bits = key.asymmetricKeyDetails?.modulusLength;
  return { type: key.asymmetricKeyType ?? "unknown", ...(bits && { bits }) };
}
