import "reflect-metadata";
import { ExtendedKeyUsage, Extension } from "@peculiar/x509";
import { ROLE_OID, type Role, roleIn, ROLES, UTF8_STRING } from "../src/x509/role.ts";
import { CertError } from "./error.ts";

export { ROLE_OID, type Role } from "../src/x509/role.ts";

/** The uses of a certificate: the daemon's own, or a client's with its role. */
const profiles = ["worker", ...ROLES] as const;
export type Profile = (typeof profiles)[number];

/** The one purpose that a certificate of each profile may be used for. */
export const purposes: Readonly<Record<Profile, ExtendedKeyUsage>> = {
  worker: ExtendedKeyUsage.serverAuth,
  reader: ExtendedKeyUsage.clientAuth,
  writer: ExtendedKeyUsage.clientAuth,
  admin: ExtendedKeyUsage.clientAuth,
};

/** Throws CertError `invalid`, naming the right ones, for anything but a profile. */
export function parseProfile(text: string | undefined): Profile {
  const profile = profiles.find((name) => name === text);
  if (profile) return profile;
  const given = text ? `${JSON.stringify(text)} is not a role` : "missing";
  throw new CertError("invalid", `--role: ${given}; reader, writer, admin or worker (the signer decides it)`);
}

/** The role extension: UTF8String, length, text. Not critical, as no TLS library knows it. */
export function roleExtension(role: Role): Extension {
  const text = Buffer.from(role);
  return new Extension(ROLE_OID, false, Buffer.from([UTF8_STRING, text.length, ...text]));
}

/** The role in the extensions of a certificate, read strictly; `malformed` for anything that is not just one role. */
export function roleOf(extensions: readonly Extension[]): Role | "malformed" | undefined {
  const [first, ...others] = extensions.filter(({ type }) => type === ROLE_OID);
  if (!first) return undefined;
  const verdict = roleIn(new Uint8Array(first.value));
  return verdict.ok && others.length === 0 ? verdict.role : "malformed";
}
