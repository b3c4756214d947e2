import { elements, extensions, objectIdentifiers } from "./der.ts";

/** The side of a connection that a certificate stands for. */
export type Purpose = "client" | "server";

/** id-kp-clientAuth and id-kp-serverAuth, RFC 5280, 4.2.1.12, as DER contents. */
const PURPOSE_OIDS: Readonly<Record<Purpose, string>> = {
  client: "2b06010505070302",
  server: "2b06010505070301",
};
const EXTENDED_KEY_USAGE = "551d25";
const KEY_USAGE = "551d0f";
const BIT_STRING = 0x03;
/**
 * Key usages (RFC 5280, 4.2.1.3), one of which OpenSSL wants of a leaf: digitalSignature or keyAgreement; of a server
 * keyEncipherment does, too.
 */
const KEY_USAGES: Readonly<Record<Purpose, number>> = { client: 0x88, server: 0xa8 };

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

/**
 * Whether a leaf's key usage lets it stand for one side of a connection; without this extension it may. Throws nothing,
 * whatever the bytes.
 */
export function keyAllows(certificate: Uint8Array, purpose: Purpose): boolean {
  const found = extensions(certificate)?.filter(({ oidHex }) => oidHex === KEY_USAGE);
  const [usage, ...more] = found ?? [];
  if (!usage) return found !== undefined;
  const [bits, ...rest] = elements(usage.value) ?? [];
  if (bits?.tag !== BIT_STRING || rest.length > 0 || more.length > 0) return false;
  // The first byte tells how many bits of the last one are unused.
  return ((bits.content[1] ?? 0) & KEY_USAGES[purpose]) !== 0;
}
