import { extensions, objectIdentifiers } from "./der.ts";

/** What a certificate is used for on a connection. */
export type Purpose = "client" | "server";

/** id-kp-clientAuth and id-kp-serverAuth, RFC 5280, 4.2.1.12, as DER contents. */
const PURPOSE_OIDS: Readonly<Record<Purpose, string>> = {
  client: "2b06010505070302",
  server: "2b06010505070301",
};
const EXTENDED_KEY_USAGE = "551d25";

/**
 * Whether a certificate may be used for a purpose by its extended key usage: without this extension it may be used for
 * any (RFC 5280, 4.2.1.12). One that is malformed or repeated allows nothing. Throws nothing, whatever the bytes.
 */
export function allows(certificate: Uint8Array, purpose: Purpose): boolean {
  const found = extensions(certificate)?.filter(({ oidHex }) => oidHex === EXTENDED_KEY_USAGE);
  const [usage, ...more] = found ?? [];
  if (!usage) return found !== undefined;
  return more.length === 0 && objectIdentifiers(usage.value)?.includes(PURPOSE_OIDS[purpose]) === true;
}
