import { resolve } from "node:path";
import { nodeCertificate, openAuthority, sign as signRequest } from "../../certs/authority.ts";
import { handOut, indexOf } from "../../certs/ca-index.ts";
import { type WrittenCrl, writeCrl } from "../../certs/crl.ts";
import { caFiles, readFrom, refuseExisting, writeFiles } from "../../certs/files.ts";
import { type CertificateDescription, type Description, describe, format, inspectFile } from "../../certs/inspect.ts";
import { formatIssued, type Issued, issueAll, type IssueOptions } from "../../certs/issue.ts";
import { generateKey, keyToPem } from "../../certs/key.ts";
import { type CaRegister, register } from "../../certs/list.ts";
import { parseProfile, type Role } from "../../certs/profile.ts";
import { type Renewed, type RenewOptions, renew as renewCertificate } from "../../certs/renew.ts";
import { type RevokedCertificate, type RevokeOptions, revoke as revokeCertificate } from "../../certs/revoke.ts";
import { columns, type Line, type Part } from "../tell/text.ts";
import { count } from "../tell/format.ts";
import { createRequest, parseRequest, requireName } from "../../certs/request.ts";

// Every command returns plain data for `--output json`; the format… functions make its text for people.
// All throw CertError, whose message names the flag or the file and says what would be right.

/** `jobsctl certs init --out DIR [--host NAME]… [--days N] [--bits N] [--force]`: a CA, a worker, a writer, a reader. */
export function init(options: IssueOptions): Promise<Issued[]> {
  return issueAll(options);
}

export interface RequestOptions {
  /** The party's name: the common name, and NAME.key and NAME.csr. */
  readonly name: string;
  /** The directory for the files; made 0700 when it is not there. */
  readonly out: string;
  /** `--host`, repeatable: what a worker asks to be known by. */
  readonly hosts?: readonly string[] | undefined;
  /** RSA key size, 2048 to 8192; 4096 when absent. */
  readonly bits?: number | undefined;
  readonly force?: boolean | undefined;
}

export interface Requested {
  readonly key: string;
  readonly csr: string;
}

/** `jobsctl certs request NAME --out DIR`: run by the party itself, whose key never leaves its machine. */
export async function request(options: RequestOptions): Promise<Requested> {
  const { name, out, hosts, bits, force = false } = options;
  requireName(name);
  const made = { key: resolve(out, `${name}.key`), csr: resolve(out, `${name}.csr`) };
  if (!force) await refuseExisting([made.key, made.csr]);
  const key = await generateKey(bits);
  const csr = await createRequest(name, key, hosts);
  await writeFiles(
    [
      { path: made.key, text: keyToPem(key), mode: 0o600 },
      { path: made.csr, text: csr, mode: 0o644 },
    ],
    force,
  );
  return made;
}

export interface SignOptions {
  /** The request's file. */
  readonly csr: string;
  /** `--ca`: the CA's certificate, or a directory with ca.crt and ca.key. */
  readonly ca: string;
  /** `--ca-key`: beside the certificate, .crt read as .key, when absent. */
  readonly caKey?: string | undefined;
  /** `--role`: reader, writer, admin or worker. */
  readonly role: string | undefined;
  /** `--host`, repeatable: for a worker; those in the request when absent. */
  readonly hosts?: readonly string[] | undefined;
  /** 1 to 3650; 90 when absent, or until the CA ends if that is sooner. */
  readonly days?: number | undefined;
  /** `--min-bits`: the smallest RSA key to accept; 4096 when absent, never under 2048. */
  readonly minBits?: number | undefined;
  /** The certificate's file; beside the request, .csr read as .crt, when absent. */
  readonly out?: string | undefined;
  readonly force?: boolean | undefined;
}

export interface Signed {
  readonly crt: string;
  /** The role that the request asks for, which counts for nothing. */
  readonly asked?: Role | "malformed";
  readonly certificate: CertificateDescription;
}

/** `jobsctl certs sign CSR --ca DIR --role ROLE`: run by whoever holds the CA's key. */
export async function sign(options: SignOptions): Promise<Signed> {
  const { csr, hosts, days, minBits, force = false } = options;
  const profile = parseProfile(options.role);
  const crt = resolve(options.out ?? csr.replace(/(\.csr)?$/, ".crt"));
  if (!force) await refuseExisting([crt]);
  const files = await caFiles(options.ca, options.caKey);
  const authority = await openAuthority(files.crt, files.key);
  const verified = await readFrom(csr, (contents) => parseRequest(contents, csr));
  const pem = await signRequest(authority, verified, { profile, hosts, days, minBits });
  const certificate = describe(pem, crt);
  const index = indexOf(files, nodeCertificate(authority.certificate));
  await handOut(index, [certificate], [{ path: crt, text: pem, mode: 0o644 }], { force, now: new Date() });
  return { crt, ...(verified.role && { asked: verified.role }), certificate };
}

/** `jobsctl certs renew FILE --ca DIR`: run by whoever holds the CA's key. */
export function renew(options: RenewOptions): Promise<Renewed> {
  return renewCertificate(options);
}

/** `jobsctl certs revoke FILE|SERIAL --ca DIR`: likewise; writes the CA's list, too. */
export function revoke(options: RevokeOptions): Promise<RevokedCertificate> {
  return revokeCertificate(options);
}

/** `jobsctl certs crl --ca DIR [--days N]`: writes the CA's list anew before it expires. */
export async function crl(options: {
  readonly ca: string;
  readonly caKey?: string | undefined;
  readonly days?: number | undefined;
}): Promise<WrittenCrl> {
  const files = await caFiles(options.ca, options.caKey);
  return writeCrl(files, await openAuthority(files.crt, files.key), options);
}

/** `jobsctl certs list --ca DIR`: what a CA has signed. */
export function list(options: { readonly ca: string }): Promise<CaRegister> {
  return register(options.ca);
}

/** `jobsctl certs inspect FILE`: what a certificate or a request says. */
export function inspect(options: { readonly file: string }): Promise<Description> {
  return inspectFile(options.file);
}

export const formatInit: (issued: readonly Issued[]) => string[] = formatIssued;
export const formatInspect: (described: Description) => string[] = format;

export function formatRequest({ key, csr }: Requested): string[] {
  return [
    `${key}  private key, for this party alone`,
    `${csr}  to be signed: jobsctl certs sign ${csr} --ca DIR --role ROLE`,
  ];
}

export function formatSign({ crt, asked, certificate }: Signed): string[] {
  const given = certificate.role ?? "none, as a worker has";
  const note = `The request asks for the role ${asked}, which was not taken over: --role decides, and gave ${given}.`;
  return [crt, ...format(certificate), ...(asked ? [note] : [])];
}

export function formatRenew({ crt, key, before, certificate }: Renewed): string[] {
  const still = `The certificate before it, ${before}, holds until it ends: jobsctl certs revoke ends it at once.`;
  return [crt, ...(key ? [`${key}  its new private key`] : []), ...format(certificate), still];
}

export function formatRevoke({ certificate, already, crl }: RevokedCertificate): string[] {
  const { serial, subject, revoked } = certificate;
  const who = [serial, subject].filter(Boolean).join("  ");
  const when = already ? `was revoked before, at ${revoked.at}` : "is revoked";
  return [`${who}  ${when} (${revoked.reason})`, ...formatCrl(crl)];
}

export function formatCrl({ path, number, revoked, until }: WrittenCrl): string[] {
  const what = `list ${number}, ${count(revoked, "certificate")} revoked, until ${until}`;
  return [`${path}  ${what}`, "Give it to each jobsd that has --crl: it is read when it changes."];
}

export function formatList({ certificates, faults }: CaRegister): Line[] {
  const rows = certificates.map(({ serial, role, subject, until, state, revoked }): Part[] => [
    serial,
    role,
    until.slice(0, 10),
    { text: state, style: state === "valid" ? "green" : "red" },
    subject,
    revoked ? `${revoked.reason}, ${revoked.at.slice(0, 10)}` : "",
  ]);
  return [...columns([["SERIAL", "ROLE", "UNTIL", "STATE", "SUBJECT", "REVOKED"], ...rows]), ...faults];
}
