import "reflect-metadata";
import { createPublicKey, type KeyObject, X509Certificate as NodeCertificate } from "node:crypto";
import { realpath } from "node:fs/promises";
import { type Extension, SubjectAlternativeNameExtension, type X509Certificate } from "@peculiar/x509";
import { codeOf } from "../src/os/errno.ts";
import { caKey, type Crl } from "../src/x509/crl.ts";
import { serialOf } from "../src/x509/der.ts";
import { LEAST_RSA_BITS, authoritiesIn, certificatesIn, nameOf, PemError, privateKeyIn } from "../src/x509/pem.ts";
import { certify, nodeCertificate, openAuthority, parseCertificate } from "./authority.ts";
import { handOut, indexOf, readIndex } from "./ca-index.ts";
import { listsIn } from "./crl.ts";
import { CertError } from "./error.ts";
import { type CaFiles, caFiles, type NewFile, readFrom, refuseExisting } from "./files.ts";
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
 * one is asked for. Throws CertError, `refused` for a certificate that neither this CA nor the old one signed, or that its CA has
 * revoked.
 */
export async function renew(options: RenewOptions): Promise<Renewed> {
  const { file, newKey = false, force = false, now = new Date() } = options;
  const files = await caFiles(options.ca, options.caKey);
  const authority = await openAuthority(files.crt, files.key);
  const [{ certificate: node }] = await readFrom(file, certificatesIn);
  const old = options.oldCa === undefined ? undefined : await caFiles(options.oldCa);
  const given = old ? await readFrom(old.crt, authoritiesIn) : [];
  const own = nodeCertificate(authority.certificate);
  const authorities = [own, ...given.map(({ certificate }) => certificate)];
  const signers = signersOf(node, file, authorities);
  for (const kept of old ? [files, old] : [files]) {
    // Lists are told apart by their keys: a CA and the one that follows it often have one name.
    const lists = await listsIn(kept.crl, authorities);
    for (const signer of signers) await requireUnrevoked(node, file, kept, { signer, lists });
  }
  const place = indexOf(files, own);
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

/** Returns which of these CAs have signed the certificate: its CA may have several certificates. Throws CertError for none. */
function signersOf(
  node: NodeCertificate,
  file: string,
  authorities: readonly NodeCertificate[],
): readonly NodeCertificate[] {
  if (node.ca)
    throw new CertError(
      "refused",
      `${file}: ${nameOf(node)} is a CA's certificate; make another CA, and trust both for a while`,
    );
  const signers = authorities.filter((signer) => node.checkIssued(signer) && node.verify(signer.publicKey));
  if (signers.length > 0) return signers;
  const issuer = node.issuer.replaceAll("\n", ", ");
  const remedy = "where that CA is to be followed by this one, give its certificate with --old-ca";
  throw new CertError("refused", `${file}: ${nameOf(node)} is signed by ${issuer}, and not by this CA; ${remedy}`);
}

/** Throws CertError where the index or the list among a CA's files says that the signer has revoked the certificate. */
async function requireUnrevoked(
  node: NodeCertificate,
  file: string,
  files: CaFiles,
  { signer, lists }: { readonly signer: NodeCertificate; readonly lists: readonly Crl[] },
): Promise<void> {
  const revoked = (await readIndex(indexOf(files, signer))).entries.get(node.serialNumber)?.revoked;
  const listed = lists.some(({ ca, serials }) => ca === caKey(signer) && serials.has(serialOf(node.raw) ?? ""));
  if (!revoked && !listed) return;
  const known = revoked ? ` at ${revoked.at} (${revoked.reason})` : `: ${files.crl} has its serial number`;
  throw new CertError("refused", `${file}: was revoked${known}; sign a request instead`);
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
