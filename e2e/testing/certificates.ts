import "reflect-metadata";
import { createPublicKey, type KeyObject } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ExtendedKeyUsage, ExtendedKeyUsageExtension, Extension, X509CertificateGenerator } from "@peculiar/x509";
import { type Authority, createAuthority, openAuthority, toPem } from "../../certs/authority.ts";
import { issueAll } from "../../certs/issue.ts";
import { generateKey, keyToPem, SIGNING, toCryptoKey } from "../../certs/key.ts";
import { ROLE_OID, type Role } from "../../certs/profile.ts";

const HOUR_MS = 3_600_000;
const UTF8_STRING = 0x0c;
const PRINTABLE_STRING = 0x13;

/** A CA, and pairs of files by party: NAME.crt and NAME.key. Disposing removes them. */
export interface Certificates extends AsyncDisposable {
  readonly file: (name: string) => string;
}

/** A CA for one run, with the certificates of a worker, a writer and a reader, valid from a little before `now` on. */
export async function issueCertificates(hosts: readonly string[] = [], now?: Date): Promise<Certificates> {
  const dir = await mkdtemp(join(tmpdir(), "jobs-e2e-"));
  const remove = (): Promise<void> => rm(dir, { recursive: true, force: true });
  try {
    // Signing with 4096 bits takes an emulated processor a second of each handshake.
    await issueAll({ out: dir, hosts, now, bits: 2048 });
  } catch (error) {
    await remove();
    throw error;
  }
  return { file: (name) => join(dir, name), [Symbol.asyncDispose]: remove };
}

interface Odd {
  /** Values of as many role extensions; a good writer's when absent. */
  readonly roles?: readonly Uint8Array[];
  /** A client's when absent; `any` for a certificate without an extended key usage. */
  readonly purpose?: ExtendedKeyUsage | "any";
  readonly notBefore?: Date;
  readonly notAfter?: Date;
}

/** Certificates that the run's CA, or one of its name, might have signed; all but `bare` must let nobody in. */
const ODD: Readonly<Record<string, Odd>> = {
  roleless: { roles: [] },
  guest: { roles: [derString("guest")] },
  printable: { roles: [derString("writer", PRINTABLE_STRING)] },
  double: { roles: [derString("reader"), derString("writer")] },
  expired: { notBefore: new Date(Date.now() - 2 * HOUR_MS), notAfter: new Date(Date.now() - HOUR_MS) },
  future: { notBefore: new Date(Date.now() + HOUR_MS), notAfter: new Date(Date.now() + 2 * HOUR_MS) },
  server: { purpose: ExtendedKeyUsage.serverAuth },
  stranger: {},
  bare: { purpose: "any" },
};

/** Adds the parties of ODD. */
export async function issueOdd({ file }: Certificates): Promise<void> {
  const trusted = await openAuthority(file("ca.crt"), file("ca.key"));
  const [namesake, key] = await Promise.all([createAuthority(), generateKey()]);
  for (const [name, odd] of Object.entries(ODD)) {
    await writeFile(file(`${name}.crt`), await sign(name === "stranger" ? namesake : trusted, name, key, odd));
    await writeFile(file(`${name}.key`), keyToPem(key), { mode: 0o600 });
  }
}

/** Adds a party with a role. */
export async function issueParty({ file }: Certificates, name: string, role: Role): Promise<void> {
  const [trusted, key] = await Promise.all([openAuthority(file("ca.crt"), file("ca.key")), generateKey(2048)]);
  const odd = { roles: [derString(role)] };
  await writeFile(file(`${name}.crt`), await sign(trusted, name, key, odd));
  await writeFile(file(`${name}.key`), keyToPem(key), { mode: 0o600 });
}

async function sign(
  { certificate: ca, key: caKey }: Authority,
  name: string,
  key: KeyObject,
  odd: Odd,
): Promise<string> {
  const { roles = [derString("writer")], purpose = ExtendedKeyUsage.clientAuth } = odd;
  const certificate = await X509CertificateGenerator.create({
    subject: `CN=${name}`,
    issuer: ca.subjectName,
    notBefore: odd.notBefore ?? new Date(Date.now() - HOUR_MS),
    // Of a certificate that ends soon each command would warn.
    notAfter: odd.notAfter ?? new Date(Date.now() + 90 * 24 * HOUR_MS),
    publicKey: await toCryptoKey(createPublicKey(key), "verify"),
    signingKey: await toCryptoKey(caKey, "sign"),
    signingAlgorithm: SIGNING,
    extensions: [
      ...(purpose === "any" ? [] : [new ExtendedKeyUsageExtension([purpose])]),
      ...roles.map((value) => new Extension(ROLE_OID, false, value)),
    ],
  });
  return toPem(certificate);
}

function derString(text: string, tag = UTF8_STRING): Uint8Array {
  const bytes = Buffer.from(text);
  return Uint8Array.from([tag, bytes.length, ...bytes]);
}
