import "reflect-metadata";
import { createPublicKey, type KeyObject, X509Certificate as NodeCertificate } from "node:crypto";
import { realpath } from "node:fs/promises";
import { type Extension, SubjectAlternativeNameExtension, type X509Certificate } from "@peculiar/x509";
import { codeOf } from "../src/os/errno.ts";
import { LEAST_RSA_BITS, authoritiesIn, certificatesIn, nameOf, PemError, privateKeyIn } from "../src/x509/pem.ts";
import { type Authority, certify, nodeCertificate, openAuthority, parseCertificate } from "./authority.ts";
import { handOut, indexOf, readIndex } from "./ca-index.ts";
import { CertError } from "./error.ts";
import { caFiles, type NewFile, readFrom, refuseExisting } from "./files.ts";
import { type CertificateDescription, describe } from "./inspect.ts";
import { generateKey, keyToPem, requireStrong } from "./key.ts";
import { type Profile, ROLE_OID, roleOf } from "./profile.ts";
import { readPrivate } from "../src/x509/file.ts";

export interface RenewOptions {
  /** The certificate's file. */
  readonly file: string;
  readonly ca: string;
  readonly caKey?: string | undefined;
  /** The certificate of the CA that signed it, when that is another than the one that renews it. */
  readonly oldCa?: string | undefined;
  /** Makes a new key, too, which replaces that beside the certificate. The key stays when absent. */
  readonly newKey?: boolean | undefined;
  /** Size of a new key; the old one's when absent. */
  readonly bits?: number | undefined;
  /** 1 to 3650; 90 when absent. */
  readonly days?: number | undefined;
  /** The new certificate's file; it replaces the old one when absent. */
  readonly out?: string | undefined;
  readonly force?: boolean | undefined;
  readonly now?: Date | undefined;
}

export interface Renewed {
  readonly crt: string;
  /** The file of the new key. */
  readonly key?: string;
  /** The serial number of the certificate that was renewed, which holds on. */
  readonly before: string;
  readonly certificate: CertificateDescription;
}

/**
 * Signs a certificate anew: subject, subject alternative names and role stay, byte for byte, and so does its key unless a new
 * one is asked for. Throws CertError, `refused` for a certificate that this CA did not sign, or has revoked.
 */
export async function renew(options: RenewOptions): Promise<Renewed> {
  const { file, newKey = false, force = false, now = new Date() } = options;
  const files = await caFiles(options.ca, options.caKey);
  const authority = await openAuthority(files.crt, files.key);
  const [{ certificate: node }] = await readFrom(file, certificatesIn);
  await requireOurs(node, file, authority, options.oldCa);
  const place = indexOf(files, nodeCertificate(authority.certificate));
  const revoked = (await readIndex(place)).entries.get(node.serialNumber)?.revoked;
  if (revoked)
    throw new CertError("refused", `${file}: was revoked at ${revoked.at} (${revoked.reason}); sign a request instead`);
  const { certificate } = parseCertificate(node, file);
  const { profile, extensions } = holderOf(certificate, file);
  const target = await targetOf(options, node);
  if (!newKey) requireStrong(node.publicKey, file, LEAST_RSA_BITS);
  const key = newKey ? await generateKey(options.bits ?? bitsOf(node)) : undefined;
  const publicKey = key ? createPublicKey(key) : node.publicKey;
  const pem = await certify(
    authority,
    { subject: certificate.subjectName, publicKey, profile },
    { ...options, now },
    extensions,
  );
  const described = describe(pem, target.crt, now);
  const made: NewFile[] = [
    ...(key ? [{ path: target.key, text: keyToPem(key), mode: 0o600 as const }] : []),
    { path: target.crt, text: pem, mode: 0o644 },
  ];
  await handOut(place, [described], made, { force: force || options.out === undefined, now });
  return { crt: target.crt, ...(key && { key: target.key }), before: node.serialNumber, certificate: described };
}

/** Throws CertError unless this CA, or the one that is named as the old one, has signed the certificate. */
async function requireOurs(
  node: NodeCertificate,
  file: string,
  authority: Authority,
  oldCa: string | undefined,
): Promise<void> {
  const given = oldCa === undefined ? [] : await readFrom((await caFiles(oldCa)).crt, authoritiesIn);
  const signers = [nodeCertificate(authority.certificate), ...given.map(({ certificate }) => certificate)];
  if (node.ca)
    throw new CertError(
      "refused",
      `${file}: ${nameOf(node)} is a CA's certificate; make another CA, and trust both for a while`,
    );
  if (signers.some((signer) => node.checkIssued(signer) && node.verify(signer.publicKey))) return;
  const issuer = node.issuer.replaceAll("\n", ", ");
  const remedy = "where that CA is to be followed by this one, give its certificate with --old-ca";
  throw new CertError("refused", `${file}: ${nameOf(node)} is signed by ${issuer}, and not by this CA; ${remedy}`);
}

/** The profile of a certificate, and the extensions that say who its holder is. */
function holderOf(certificate: X509Certificate, file: string): { profile: Profile; extensions: Extension[] } {
  const role = roleOf(certificate.extensions);
  if (role === "malformed")
    throw new CertError(
      "refused",
      `${file}: its role is malformed, so that no worker takes it; sign a request with --role`,
    );
  const hosts = certificate.getExtension(SubjectAlternativeNameExtension);
  if (!role && !hosts)
    throw new CertError(
      "refused",
      `${file}: has neither a role nor a host, so that it is for nobody; sign a request with --role`,
    );
  const kept = certificate.extensions.filter(({ type }) => type === ROLE_OID || type === SubjectAlternativeName);
  return { profile: role ?? "worker", extensions: kept };
}

const SubjectAlternativeName = "2.5.29.17";

function bitsOf({ publicKey }: NodeCertificate): number | undefined {
  return publicKey.asymmetricKeyDetails?.modulusLength;
}

/** The files to write. Throws CertError where that would end a private key that nobody has asked to replace. */
async function targetOf(
  { file, out, newKey = false, force = false }: RenewOptions,
  node: NodeCertificate,
): Promise<{ readonly crt: string; readonly key: string }> {
  // A symbolic link stays: what it leads to is replaced.
  const crt = out ?? (await realpath(file));
  const key = crt.replace(/(\.(crt|pem|cer))?$/, ".key");
  if (out !== undefined) {
    if (!force) await refuseExisting(newKey ? [crt, key] : [crt]);
    return { crt, key };
  }
  const contents = await readFrom(file, (bytes) => bytes);
  if (contents.includes("PRIVATE KEY-----"))
    throw new CertError("refused", `${file}: holds a private key, too, and would be replaced; give --out FILE`);
  if (newKey && !force) await requireOwnKey(key, node);
  return { crt, key };
}

/** A missing key is no obstacle: its holder may have it elsewhere. */
async function requireOwnKey(path: string, node: NodeCertificate): Promise<void> {
  const key: KeyObject | undefined = await readFrom(path, privateKeyIn, readPrivate).catch((error: unknown) => {
    const cause = error instanceof CertError && error.cause instanceof PemError ? error.cause.cause : undefined;
    if (codeOf(cause) === "ENOENT") return undefined;
    throw error;
  });
  if (!key || node.checkPrivateKey(key)) return;
  throw new CertError("exists", `${path}: is the key of another certificate; --force to replace it`);
}
