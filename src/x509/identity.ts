import { hash, X509Certificate } from "node:crypto";
import { commonNames } from "./der.ts";
import { type Role, roleOf, type RoleRefusal, ROLES } from "./role.ts";
import { allows } from "./usage.ts";

const MAX_CACHED = 1024;
const MAX_NAME_LENGTH = 256;
const MAX_SUBJECT_LENGTH = 1024;

/** The holder of a certificate, as it describes them. */
export interface Certificate {
  /** Its one common name. */
  readonly name: string;
  /**
   * Whom it stands for, whatever the role: the common name, or where the subject has more than that, the whole of it as in
   * RFC 4514, "CN=ada,O=Example". No two subjects have it in common.
   */
  readonly subject: string;
  /** The serial number in hex. */
  readonly serial: string;
  /** SHA-256 of its DER, in hex. */
  readonly fingerprint256: string;
  readonly notBefore: Date;
  readonly notAfter: Date;
}

export interface Principal extends Certificate {
  readonly role: Role;
}

/** `reason` is for programs, `message` for people; what could be read of the certificate is there even when refused. */
export interface Refused {
  readonly ok: false;
  readonly reason:
    | "CERTIFICATE_MALFORMED"
    | "CERTIFICATE_NAME"
    | "CERTIFICATE_PURPOSE"
    | "CERTIFICATE_NOT_YET_VALID"
    | "CERTIFICATE_EXPIRED"
    | "CERTIFICATE_REVOKED"
    | "CRL_MISSING"
    | "CRL_EXPIRED"
    | "CRL_NOT_YET_VALID"
    | "CHAIN_INCOMPLETE"
    | "NO_CERTIFICATE"
    | RoleRefusal;
  readonly message: string;
  readonly certificate?: Certificate;
}

export type Identity = { readonly ok: true; readonly principal: Principal } | Refused;

const cache = new Map<string, Identity>();

/**
 * Returns the holder and role of a certificate that TLS has verified. The dates are checked at every call of this function, because a
 * connection may outlive its certificate; the rest is cached by fingerprint. Throws nothing, whatever the bytes.
 *
 * @param der the whole certificate
 * @param nowMs the time that it must be valid at
 */
export function identify(der: Uint8Array, nowMs: number = Date.now()): Identity {
  const key = hash("sha256", der, "hex");
  let known = cache.get(key);
  if (!known) {
    known = parse(der);
    if (cache.size >= MAX_CACHED) cache.clear();
    cache.set(key, known);
  }
  return known.ok ? valid(known.principal, nowMs) : known;
}

function valid(principal: Principal, nowMs: number): Identity {
  const { name, notBefore, notAfter } = principal;
  const refused = (reason: Refused["reason"], message: string): Refused => ({
    ok: false,
    reason,
    message: `certificate of ${JSON.stringify(name)} ${message}: ask for a new one, or check the clocks`,
    certificate: principal,
  });
  if (nowMs < notBefore.getTime())
    return refused("CERTIFICATE_NOT_YET_VALID", `is valid from ${notBefore.toISOString()}`);
  if (nowMs > notAfter.getTime()) return refused("CERTIFICATE_EXPIRED", `expired at ${notAfter.toISOString()}`);
  return { ok: true, principal };
}

/** Describes the holder of a certificate, verified or not. `name` is empty unless it has exactly one common name. */
export function inspect(x509: X509Certificate): Certificate {
  // toLegacyObject() ends the process where the key is on a curve that NIST has no name for.
  const [name = "", ...more] = commonNames(x509.raw) ?? [];
  return {
    name: more.length === 0 ? name : "",
    subject: subjectOf(x509, name),
    serial: x509.serialNumber,
    fingerprint256: hash("sha256", x509.raw, "hex"),
    notBefore: x509.validFromDate,
    notAfter: x509.validToDate,
  };
}

/** A name with "=" in it is not its own subject, which might be the text of another. */
function subjectOf(x509: X509Certificate, name: string): string {
  // Node has a line for each part of the subject, the last one first in RFC 4514; no part has a newline in it.
  const parts = x509.subject?.split("\n") ?? [];
  const alone = parts.length === 1 && parts[0]?.startsWith("CN=") && !parts[0].includes(" + ");
  return alone && !name.includes("=") ? name : parts.toReversed().join(",");
}

function parse(der: Uint8Array): Identity {
  let x509: X509Certificate;
  let certificate: Certificate;
  try {
    x509 = new X509Certificate(der);
    certificate = inspect(x509);
    // A comparison with a date that cannot be read is always false.
    if (Number.isNaN(x509.validFromDate.getTime() + x509.validToDate.getTime())) throw new RangeError("no date");
  } catch {
    return { ok: false, reason: "CERTIFICATE_MALFORMED", message: "the certificate cannot be parsed" };
  }
  const { name } = certificate;
  if (name === "") {
    const message = "the certificate must have exactly one common name";
    return { ok: false, reason: "CERTIFICATE_NAME", message, certificate };
  }
  if (certificate.subject.length > MAX_SUBJECT_LENGTH) {
    const message = `the certificate's subject is longer than ${MAX_SUBJECT_LENGTH} characters`;
    return { ok: false, reason: "CERTIFICATE_NAME", message, certificate };
  }
  // The name is in every audit record and every job of its holder. RFC 5280 allows 64 characters.
  if (name.length > MAX_NAME_LENGTH) {
    const message = `the certificate's common name is longer than ${MAX_NAME_LENGTH} characters`;
    return { ok: false, reason: "CERTIFICATE_NAME", message, certificate };
  }
  if (!allows(der, "client")) {
    const message = `certificate of ${JSON.stringify(name)} is not for clients: its extended key usage has no clientAuth; sign one with clientAuth, or without this extension`;
    return { ok: false, reason: "CERTIFICATE_PURPOSE", message, certificate };
  }
  const role = roleOf(der);
  if (!role.ok) {
    const message = `certificate of ${JSON.stringify(name)}: ${role.message}; sign one with the role ${ROLES.join(", ")}`;
    return { ok: false, reason: role.reason, message, certificate };
  }
  return { ok: true, principal: { ...certificate, role: role.role } };
}
