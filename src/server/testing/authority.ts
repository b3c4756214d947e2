import "reflect-metadata";
import { randomBytes, type webcrypto } from "node:crypto";
import {
  BasicConstraintsExtension,
  ExtendedKeyUsage,
  ExtendedKeyUsageExtension,
  Extension,
  type JsonName,
  SubjectAlternativeNameExtension,
  X509CertificateGenerator,
} from "@peculiar/x509";
import type { Role } from "../../x509/role.ts";

const ALGORITHM = {
  name: "RSASSA-PKCS1-v1_5",
  hash: "SHA-256",
  modulusLength: 2048,
  publicExponent: new Uint8Array([1, 0, 1]),
};
const DAY_MS = 24 * 3600 * 1000;

/** A certificate and its key, in PEM. */
export interface Pair {
  readonly cert: string;
  readonly key: string;
}

export interface IssueOptions {
  readonly name?: string;
  /** The whole subject, in the place of the name alone. */
  readonly subject?: string | JsonName;
  readonly notBefore?: Date;
  readonly notAfter?: Date;
  readonly usages?: readonly ("clientAuth" | "serverAuth")[];
  /** The value of each role extension. */
  readonly roles?: readonly Uint8Array[];
}

/** A CA for tests, with one key of its own and one for all certificates that it signs. */
export interface Authority {
  readonly ca: Pair;
  readonly server: Pair;
  issue(options?: IssueOptions): Promise<Pair>;
  /** Issues a client's certificate that is right. */
  client(role: Role, options?: IssueOptions): Promise<Pair>;
}

/** Encodes a DER string: a UTF8String unless another tag is given. */
export function derString(text: string, tag = 0x0c): Uint8Array {
  const bytes = Buffer.from(text);
  return Uint8Array.from([tag, bytes.length, ...bytes]);
}

export async function authority(name = "test CA", days = 1): Promise<Authority> {
  const [signing, leaf] = await Promise.all([generateKeys(), generateKeys()]);
  const leafKey = await pemOf(leaf);
  const issuer = `CN=${name}`;
  const dates = { notBefore: new Date(Date.now() - DAY_MS), notAfter: new Date(Date.now() + DAY_MS) };
  const common = () => ({ serialNumber: randomBytes(8).toString("hex"), issuer, signingAlgorithm: ALGORITHM });
  const ca = await X509CertificateGenerator.create({
    ...common(),
    ...dates,
    notAfter: new Date(Date.now() + days * DAY_MS),
    subject: issuer,
    publicKey: signing.publicKey,
    signingKey: signing.privateKey,
    extensions: [new BasicConstraintsExtension(true, 0, true)],
  });
  async function issue(options: IssueOptions = {}): Promise<Pair> {
    const { name = "someone", usages = ["clientAuth"], roles = [] } = options;
    const certificate = await X509CertificateGenerator.create({
      ...common(),
      ...dates,
      ...options,
      subject: options.subject ?? (name === "" ? "" : `CN=${name}`),
      publicKey: leaf.publicKey,
      signingKey: signing.privateKey,
      extensions: [
        ...(usages.length > 0 ? [new ExtendedKeyUsageExtension(usages.map((usage) => ExtendedKeyUsage[usage]))] : []),
        ...roles.map((value) => new Extension("1.2.840.10070.8.1", false, value)),
        new SubjectAlternativeNameExtension([
          { type: "dns", value: "localhost" },
          { type: "ip", value: "127.0.0.1" },
        ]),
      ],
    });
    return { cert: certificate.toString("pem"), key: leafKey };
  }
  return {
    ca: { cert: ca.toString("pem"), key: await pemOf(signing) },
    server: await issue({ name: "worker", usages: ["serverAuth"] }),
    issue,
    client: (role, options) => issue({ name: `some ${role}`, roles: [derString(role)], ...options }),
  };
}

function generateKeys(): Promise<webcrypto.CryptoKeyPair> {
  return crypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
}

export async function pemOf({ privateKey }: webcrypto.CryptoKeyPair): Promise<string> {
  const der = Buffer.from(await crypto.subtle.exportKey("pkcs8", privateKey)).toString("base64");
  return `-----BEGIN PRIVATE KEY-----\n${der.replaceAll(/.{64}/g, "$&\n")}\n-----END PRIVATE KEY-----\n`;
}
