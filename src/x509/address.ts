import { isIP } from "node:net";

/**
 * An IPv4 address that IPv6 has mapped (`::ffff:192.0.2.1`, `::ffff:c000:201`) as IPv4, which people and certificates
 * write; anything else as it is.
 */
export function unmapped(host: string): string {
  if (isIP(host) !== 6 || host.includes("%")) return host;
  const [, high, low] = /^\[::ffff:([0-9a-f]+):([0-9a-f]+)\]$/.exec(new URL(`http://[${host}]`).hostname) ?? [];
  if (high === undefined || low === undefined) return host;
  return [high, low].flatMap((part) => [parseInt(part, 16) >> 8, parseInt(part, 16) & 0xff]).join(".");
}
