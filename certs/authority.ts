import "reflect-metadata";
import { createPublicKey, type KeyObject, X509Certificate as NodeCertificate } from "node:crypto";
import {
  AuthorityKeyIdentifierExtension,
  BasicConstraintsExtension,
  ExtendedKeyUsageExtension,
  type Extension,
  type JsonGeneralName,
  type JsonName,
  KeyUsageFlags,
  KeyUsagesExtension,
  type Name,
  PublicKey,
  SubjectAlternativeNameExtension,
  SubjectKeyIdentifierExtension,
  X509Certificate,
  X509CertificateGenerator,
} from "@peculiar/x509";
import { pathOf } from "../src/x509/chain.ts";
import { authoritiesIn, bundle } from "../src/x509/pem.ts";
import { CertError } from "./error.ts";
import { readFrom } from "./files.ts";
import { toAltNames } from "./host.ts";
import { generateKey, readKey, requireStrong, SIGNING, toCryptoKey } from "./key.ts";
import { type Profile, purposes, roleExtension } from "./profile.ts";
import type { CertificateRequest } from "./request.ts";

/** A certificate authority: its certificate, and the private key to sign with. */
export interface Authority {
  readonly certificate: X509Certificate;
  readonly key: KeyObject;
  /**
   * The chain to append to each certificate that it signs, in PEM: an intermediate CA's own certificate and those above it.
   */
  readonly chain: string;
}

export interface SignOptions {
  /** The signer alone decides the profile; a request cannot ask for one. */
  readonly profile: Profile;
  /** DNS names and IP addresses of a worker; those that the request asks for when absent. Not for clients. */
  readonly hosts?: readonly string[] | undefined;
  /** Life in days, 1 to 3650. 90 when absent, or until the CA ends if that is sooner. */
  readonly days?: number | undefined;
  /** The smallest RSA key accepted, in bits: 4096 when absent, never under 2048. */
  readonly minBits?: number | undefined;
  /** The time at which the certificate's life begins. */
  readonly now?: Date | undefined;
}

const LEAF_DAYS = 90;
const CA_DAYS = 3650;
export const DAY_MS = 86_400_000;
/** A certificate is valid from a little before it was made, for parties whose clocks are slow. */
export const BACKDATE_MS = 5 * 60_000;

/** A new CA with a self-signed certificate of 10 years, which may sign leaves only. Throws CertError `invalid`. */
export async function createAuthority(options: { bits?: number | undefined; now?: Date } = {}): Promise<Authority> {
  const key = await generateKey(options.bits);
  const publicKey = await toCryptoKey(createPublicKey(key), "verify");
  const subjectKeyId = await SubjectKeyIdentifierExtension.create(publicKey);
  const certificate = await X509CertificateGenerator.createSelfSigned({
    name: [{ CN: ["jobs CA"] }],
    keys: { privateKey: await toCryptoKey(key, "sign"), publicKey },
    signingAlgorithm: SIGNING,
    ...life(options.now ?? new Date(), CA_DAYS),
    extensions: [
      new BasicConstraintsExtension(true, 0, true),
      new KeyUsagesExtension(KeyUsageFlags.keyCertSign | KeyUsageFlags.cRLSign, true),
      subjectKeyId,
      new AuthorityKeyIdentifierExtension(subjectKeyId.keyId),
    ],
  });
  return { certificate, key, chain: "" };
}

/**
 * Reads a CA from its two files; the file of an intermediate CA may have the certificates above it behind its own. Throws CertError `unreadable`,
 * and `refused` when the certificate is not a CA's, the key belongs to another certificate, or others may read the key.
 */
export async function openAuthority(certificatePath: string, keyPath: string): Promise<Authority> {
  const [found, key] = await Promise.all([readFrom(certificatePath, authoritiesIn), readKey(keyPath)]);
  const authorities = found.map(({ certificate }) => certificate);
  const own = authorities.find((certificate) => certificate.checkPrivateKey(key));
  if (!own) throw new CertError("refused", `${keyPath}: is not the key of ${certificatePath}`);
  requireStrong(key, keyPath, 0);
  const { certificates } = pathOf(own, authorities, []);
  const chain = certificates.filter((certificate) => !certificate.checkIssued(certificate));
  return { certificate: parseCertificate(own, certificatePath).certificate, key, chain: bundle(chain) };
}

/**
 * Signs a verified request with a profile's extensions and none of the request's own.
 * Returns the certificate in PEM, an intermediate CA's behind it. Throws CertError `invalid` for an option, `refused` for the request or the CA.
 */
export async function sign(authority: Authority, request: CertificateRequest, options: SignOptions): Promise<string> {
  const { profile } = options;
  requireStrong(request.publicKey, request.commonName, options.minBits);
  const subject = `CN=${request.commonName}`;
  if (subject === authority.certificate.subject) {
    throw new CertError("refused", `${request.commonName}: is the CA's own name; the request needs another`);
  }
  return certify(
    authority,
    { subject: [{ CN: [request.commonName] }], publicKey: request.publicKey, profile },
    options,
    [...profileExtensions(profile, request, options.hosts)],
  );
}

/** A certificate to be signed that is no CA's: its holder and what that may do. */
interface Leaf {
  readonly subject: Name | JsonName;
  readonly publicKey: KeyObject;
  readonly profile: Profile;
}

/** Signs a leaf with a profile's extensions and `own`. Returns it in PEM, an intermediate CA's certificate behind it. */
export async function certify(
  authority: Authority,
  { subject, publicKey: key, profile }: Leaf,
  { now = new Date(), days }: Pick<SignOptions, "now" | "days">,
  own: readonly Extension[],
): Promise<string> {
  const ca = authority.certificate;
  const publicKey = new PublicKey(key.export({ format: "der", type: "spki" }));
  const certificate = await X509CertificateGenerator.create({
    // The library makes a serial number of 128 random bits, a positive integer, when none is given.
    subject,
    issuer: ca.subjectName,
    publicKey,
    signingKey: await toCryptoKey(authority.key, "sign"),
    signingAlgorithm: SIGNING,
    ...leafLife(ca, now, days),
    extensions: [
      new BasicConstraintsExtension(false, undefined, true),
      new KeyUsagesExtension(KeyUsageFlags.digitalSignature, true),
      new ExtendedKeyUsageExtension([purposes[profile]]),
      await SubjectKeyIdentifierExtension.create(publicKey),
      await authorityKeyId(ca),
      ...own,
    ],
  });
  return toPem(certificate) + authority.chain;
}

/** The same certificate as Node has it. */
export function nodeCertificate(certificate: X509Certificate): NodeCertificate {
  return new NodeCertificate(Buffer.from(certificate.rawData));
}

/** A certificate in PEM, ending in a newline. */
export function toPem(certificate: X509Certificate): string {
  return `${certificate.toString("pem")}\n`;
}

/** A certificate as Node and as the library read it. Throws CertError `unreadable`, led by `from`. */
export function parseCertificate(
  given: string | NodeCertificate,
  from: string,
): { node: NodeCertificate; certificate: X509Certificate } {
  try {
    const node = typeof given === "string" ? new NodeCertificate(given) : given;
    const certificate = new X509Certificate(node.raw);
    // Node reads these fields on first use. They may be damaged where the rest is not.
    void [certificate.extensions, node.publicKey, node.validFromDate.toISOString(), node.validToDate.toISOString()];
    return { node, certificate };
  } catch (error) {
    throw new CertError("unreadable", `${from}: is not a well-formed certificate`, error);
  }
}

function profileExtensions(
  profile: Profile,
  request: CertificateRequest,
  hosts: readonly string[] | undefined,
): Extension[] {
  if (profile === "worker") return [new SubjectAlternativeNameExtension(workerNames(request, hosts))];
  if (hosts?.length) throw new CertError("invalid", `--host: is for --role worker; a ${profile} has no host`);
  return [roleExtension(profile)];
}

function workerNames(request: CertificateRequest, hosts: readonly string[] = []): JsonGeneralName[] {
  if (hosts.length > 0) return toAltNames(hosts);
  const asked = request.altNames.map(({ type, value }) =>
    type === "dns" || type === "ip" ? value : `${type}:${value}`,
  );
  if (asked.length > 0) return toAltNames(asked, `${request.commonName}'s request`);
  throw new CertError("invalid", "--host: a worker's certificate needs the names or addresses it is reached by");
}

/** The CA's own identifier, which need not be the hash of its key. */
export async function authorityKeyId(ca: X509Certificate): Promise<Extension> {
  const keyId = ca.getExtension(SubjectKeyIdentifierExtension)?.keyId;
  return keyId ? new AuthorityKeyIdentifierExtension(keyId) : AuthorityKeyIdentifierExtension.create(ca.publicKey);
}

function leafLife(ca: X509Certificate, now: Date, days: number | undefined): { notBefore: Date; notAfter: Date } {
  const caEnds = ca.notAfter.toISOString();
  if (ca.notAfter <= now) throw new CertError("refused", `the CA's certificate has expired, on ${caEnds}`);
  const wanted = life(now, days ?? LEAF_DAYS);
  if (wanted.notAfter <= ca.notAfter) return wanted;
  if (days === undefined) return { ...wanted, notAfter: ca.notAfter };
  const most = Math.floor((ca.notAfter.getTime() - now.getTime()) / DAY_MS);
  throw new CertError("invalid", `--days: ${days} is past the CA's own end on ${caEnds}; at most ${most}`);
}

function life(now: Date, days: number): { notBefore: Date; notAfter: Date } {
  if (!Number.isInteger(days) || days < 1 || days > CA_DAYS) {
    throw new CertError("invalid", `--days: ${days} must be a whole number from 1 to ${CA_DAYS}`);
  }
  // X.509 times are whole seconds; rounding here keeps a leaf of the CA's own age from seeming to outlive it.
  const startMs = Math.floor(now.getTime() / 1000) * 1000;
  return { notBefore: new Date(startMs - BACKDATE_MS), notAfter: new Date(startMs + days * DAY_MS) };
}
