import { hash, X509Certificate } from "node:crypto";
import { commonNames, elements, extensions } from "../x509/der.ts";
import { allows } from "../x509/usage.ts";
import type { Role } from "./roles.ts";

/** 1.2.840.10070.8.1, the role, as its DER content. */
const ROLE_OID_HEX = "2a8648ce560801";
const ROLE_OID = "1.2.840.10070.8.1";
const UTF8_STRING = 0x0c;
const MAX_CACHED = 1024;
const MAX_NAME_LENGTH = 256;

/** What a certificate says of its holder. */
export interface Certificate {
  /** Its one common name. */
  readonly name: string;
  /** In hex. */
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
    | "NO_CERTIFICATE"
    | RoleRefusal;
  readonly message: string;
  readonly certificate?: Certificate;
}

export type Identity = { readonly ok: true; readonly principal: Principal } | Refused;

const cache = new Map<string, Identity>();

/**
 * Who a certificate, verified by TLS, stands for. The dates are checked at every call of this function, because a
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

/** What a certificate says, verified or not; `name` is empty unless it has exactly one common name. */
export function inspect(x509: X509Certificate): Certificate {
  // Not by toLegacyObject(): it ends the process where the key is on a curve that NIST has no name for.
  const [name = "", ...more] = commonNames(x509.raw) ?? [];
  return {
    name: more.length === 0 ? name : "",
    serial: x509.serialNumber,
    fingerprint256: hash("sha256", x509.raw, "hex"),
    notBefore: x509.validFromDate,
    notAfter: x509.validToDate,
  };
}

function parse(der: Uint8Array): Identity {
  let x509: X509Certificate;
  let certificate: Certificate;
  try {
    x509 = new X509Certificate(der);
    certificate = inspect(x509);
    // A date that cannot be read is before and after nothing.
    if (Number.isNaN(x509.validFromDate.getTime() + x509.validToDate.getTime())) throw new RangeError("no date");
  } catch {
    return { ok: false, reason: "CERTIFICATE_MALFORMED", message: "the certificate cannot be parsed" };
  }
  const { name } = certificate;
  if (name === "") {
    const message = "the certificate must have exactly one common name";
    return { ok: false, reason: "CERTIFICATE_NAME", message, certificate };
  }
  // It is in every record of what its holder does, and in every job: RFC 5280 allows 64 characters.
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
    const message = `certificate of ${JSON.stringify(name)}: ${role.message}; sign one with role reader or writer`;
    return { ok: false, reason: role.reason, message, certificate };
  }
  return { ok: true, principal: { ...certificate, role: role.role } };
}

type RoleRefusal = "ROLE_MISSING" | "ROLE_REPEATED" | "ROLE_MALFORMED" | "ROLE_UNKNOWN";

type RoleVerdict =
  | { readonly ok: true; readonly role: Role }
  | { readonly ok: false; readonly reason: RoleRefusal; readonly message: string };

/**
 * The role that a certificate carries: exactly one extension 1.2.840.10070.8.1, its value exactly a DER UTF8String
 * "reader" or "writer". Throws nothing, whatever the bytes.
 */
export function roleOf(certificate: Uint8Array): RoleVerdict {
  const values = extensions(certificate)?.filter(({ oidHex }) => oidHex === ROLE_OID_HEX);
  if (!values) return { ok: false, reason: "ROLE_MALFORMED", message: "its extensions are not DER" };
  const [role, ...more] = values;
  if (!role) return { ok: false, reason: "ROLE_MISSING", message: `it has no role extension ${ROLE_OID}` };
  if (more.length > 0)
    return { ok: false, reason: "ROLE_REPEATED", message: `it has several role extensions ${ROLE_OID}` };
  return roleIn(role.value);
}

/** The role in an extension's value. Throws nothing, whatever the bytes. */
export function roleIn(value: Uint8Array): RoleVerdict {
  const [text, ...more] = elements(value) ?? [];
  if (text?.tag !== UTF8_STRING || more.length > 0) {
    return { ok: false, reason: "ROLE_MALFORMED", message: `its role extension ${ROLE_OID} is not one DER UTF8String` };
  }
  // Bytes that are not UTF-8 become U+FFFD, which is in no role's name.
  const role = Buffer.from(text.content).toString("utf8");
  if (role === "reader" || role === "writer") return { ok: true, role };
  const message = `its role ${JSON.stringify(role.slice(0, 32))} is neither reader nor writer`;
  return { ok: false, reason: "ROLE_UNKNOWN", message };
}
