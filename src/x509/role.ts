import { elements, extensions } from "./der.ts";

/**
 * The rights of a certificate's holder: a reader may only look, a writer may also start and change jobs, and an admin may
 * do that with everybody's jobs, also where each owner's are private.
 */
export const ROLES = ["reader", "writer", "admin"] as const;
export type Role = (typeof ROLES)[number];

/** The X.509 v3 extension that holds a client's role as a DER UTF8String. */
export const ROLE_OID = "1.2.840.10070.8.1";
/** The same as the content of its DER. */
export const ROLE_OID_HEX = "2a8648ce560801";
export const UTF8_STRING = 0x0c;

/** Why a certificate has no role. */
export type RoleRefusal = "ROLE_MISSING" | "ROLE_REPEATED" | "ROLE_MALFORMED" | "ROLE_UNKNOWN";

/** The role of a certificate, or why it has none: `reason` is for programs, `message` for people. */
export type RoleVerdict =
  | { readonly ok: true; readonly role: Role }
  | { readonly ok: false; readonly reason: RoleRefusal; readonly message: string };

/**
 * The role that a certificate carries: exactly one extension 1.2.840.10070.8.1, its value exactly a DER UTF8String of one
 * of ROLES. Throws nothing, whatever the bytes.
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
  const name = Buffer.from(text.content).toString("utf8");
  const role = ROLES.find((known) => known === name);
  if (role) return { ok: true, role };
  const message = `its role ${JSON.stringify(name.slice(0, 32))} is none of ${ROLES.join(", ")}`;
  return { ok: false, reason: "ROLE_UNKNOWN", message };
}
