import { isIP } from "node:net";
import type { JsonGeneralName } from "@peculiar/x509";
import { unmapped } from "../src/x509/address.ts";
import { CertError } from "./error.ts";

/** The most names in one certificate. Each is compared on every connection. */
const MAX_HOSTS = 100;
/** RFC 1123 labels, and `_`, which container names have. */
const LABEL = /^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$/;

/**
 * DNS names and IP addresses as subject alternative names, in lower case and without repetition.
 * Throws CertError `invalid`, led by `from`, that names the text which is neither. Wildcards, ports and zones are refused.
 */
export function toAltNames(hosts: readonly string[], from = "--host"): JsonGeneralName[] {
  const names = new Map(hosts.map((host) => toAltName(host, from)).map((name) => [name.value, name]));
  if (names.size <= MAX_HOSTS) return [...names.values()];
  throw new CertError("invalid", `${from}: ${names.size} names; at most ${MAX_HOSTS} fit a certificate`);
}

/** Whether a certificate can be made out to this host. */
export function isHost(host: string): boolean {
  return isIP(host) !== 0 ? !host.includes("%") : isDnsName(host.toLowerCase());
}

function toAltName(given: string, from: string): JsonGeneralName {
  if (!isHost(given)) {
    throw new CertError("invalid", `${from}: ${JSON.stringify(given)} is neither a DNS name nor an IP address`);
  }
  const host = unmapped(given);
  // A URL has the one canonical form of an IPv6 address.
  if (isIP(host) === 6) return { type: "ip", value: new URL(`http://[${host}]`).hostname.slice(1, -1) };
  return { type: isIP(host) === 4 ? "ip" : "dns", value: host.toLowerCase() };
}

/** A last label of digits alone would be a mistyped address: RFC 3696 section 2. */
function isDnsName(name: string): boolean {
  const labels = name.split(".");
  return name.length <= 253 && labels.every((label) => LABEL.test(label)) && !/^\d+$/.test(labels.at(-1) ?? "");
}
