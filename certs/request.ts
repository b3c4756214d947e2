import "reflect-metadata";
import { createPublicKey, type KeyObject } from "node:crypto";
import {
  type JsonGeneralName,
  Pkcs10CertificateRequest,
  Pkcs10CertificateRequestGenerator,
  SubjectAlternativeNameExtension,
} from "@peculiar/x509";
import { PemError, requestIn } from "../src/x509/pem.ts";
import { CertError } from "./error.ts";
import { toAltNames } from "./host.ts";
import { SIGNING, toCryptoKey } from "./key.ts";
import { type Role, roleOf } from "./profile.ts";

/** The parts of a certificate signing request that a signer uses. The rest is ignored. */
export interface CertificateRequest {
  /** The party's name, the only part of the subject that is kept. */
  readonly commonName: string;
  readonly publicKey: KeyObject;
  /** The subject alternative names it asks for, as they stand there. */
  readonly altNames: readonly JsonGeneralName[];
  /** The role it asks for, which the signer does not take from it. */
  readonly role?: Role | "malformed" | undefined;
}

/** A name that is safe as a common name (at most 64 characters, RFC 5280 ub-common-name), a file's and in a log. */
const NAME = /^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$/;

/** A PEM PKCS #10 request for the key's owner, asking for `hosts` as alternative names. Throws CertError `invalid`. */
export async function createRequest(name: string, key: KeyObject, hosts: readonly string[] = []): Promise<string> {
  requireName(name);
  const request = await Pkcs10CertificateRequestGenerator.create({
    name: [{ CN: [name] }],
    keys: { privateKey: await toCryptoKey(key, "sign"), publicKey: await toCryptoKey(createPublicKey(key), "verify") },
    signingAlgorithm: SIGNING,
    extensions: hosts.length > 0 ? [new SubjectAlternativeNameExtension(toAltNames(hosts))] : [],
  });
  return `${request.toString("pem")}\n`;
}

/** Throws CertError `invalid` for what cannot be a party's common name and the name of its files. */
export function requireName(name: string): void {
  if (NAME.test(name)) return;
  const rule = "must be 1 to 64 of A-Z a-z 0-9 . _ @ - and begin with a letter or a digit";
  throw new CertError("invalid", `name: ${JSON.stringify(name)} ${rule}`);
}

/**
 * Reads a request, PEM or DER, and verifies that the owner of its key has signed it.
 * Throws CertError `refused`, led by `from`, which names the request.
 */
export async function parseRequest(contents: string | Uint8Array, from: string): Promise<CertificateRequest> {
  const { verified, subject, names, ...asked } = await decode(contents, from).catch((error: unknown) => {
    if (error instanceof PemError) throw new CertError("refused", error.message, error);
    throw new CertError("refused", `${from}: is not a well-formed certificate signing request`, error);
  });
  if (!verified) {
    throw new CertError("refused", `${from}: its signature is not by its own key; it was changed on its way`);
  }
  const [commonName] = names;
  if (names.length !== 1 || !commonName || !NAME.test(commonName)) {
    throw new CertError(
      "refused",
      `${from}: its subject must have one common name of A-Z a-z 0-9 . _ @ -, it is ${JSON.stringify(subject)}`,
    );
  }
  return { commonName, ...asked };
}

async function decode(contents: string | Uint8Array, from: string) {
  const request = new Pkcs10CertificateRequest(requestIn(contents, from));
  return {
    verified: await request.verify(),
    subject: request.subject,
    names: request.subjectName.getField("CN"),
    publicKey: createPublicKey({ key: Buffer.from(request.publicKey.rawData), format: "der", type: "spki" }),
    role: roleOf(request.extensions),
    altNames: request.extensions.flatMap((extension) =>
      extension instanceof SubjectAlternativeNameExtension ? extension.names.toJSON() : [],
    ),
  };
}
