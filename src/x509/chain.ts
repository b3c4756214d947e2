import { type KeyObject, X509Certificate } from "node:crypto";
import type { TLSSocket } from "node:tls";
import { elements, extensions } from "./der.ts";
import { ROLE_OID_HEX } from "./role.ts";
import { maySign, nameOf, weaknessOf } from "./pem.ts";
import { allows, keyAllows, type Purpose } from "./usage.ts";

/** The reason for which a certificate is refused, for a program. */
export type FaultKind =
  | "malformed"
  | "expired"
  | "not-yet-valid"
  | "weak-key"
  | "weak-signature"
  | "purpose"
  | "not-a-ca"
  | "path-length"
  | "critical-extension"
  | "self-signed"
  | "wrong-signature"
  | "no-issuer";

/** A certificate on the way to a trusted one, and the reason for which it is refused. */
export interface Fault {
  readonly kind: FaultKind;
  readonly certificate: X509Certificate;
  /** 0 for the certificate that was asked about, 1 for its issuer. */
  readonly depth: number;
  /** The reason in words, such as "expired at 2026-01-31T00:00:00.000Z". */
  readonly says: string;
}

/** The certificates from a leaf up to a trusted one; `end` is why there is none at its top. */
export interface Path {
  readonly certificates: readonly X509Certificate[];
  readonly end?: Fault;
}

/** The longest path that is followed. Each step may take the verification of many signatures. */
const MAX_DEPTH = 16;
/** The most certificates of the other side that are looked at. A stranger may send hundreds. */
const MAX_SENT = 16;
const SOON_MS = 30 * 24 * 3600 * 1000;
const BASIC_CONSTRAINTS = "551d13";
const INTEGER = 0x02;

/**
 * The path that OpenSSL would take from `leaf` to one of `trusted`, over `others` that came along with it. A trusted
 * certificate ends it, a root or not.
 */
export function pathOf(
  leaf: X509Certificate,
  others: readonly X509Certificate[],
  trusted: readonly X509Certificate[],
  nowMs = Date.now(),
): Path {
  const same = (one: X509Certificate) => (other: X509Certificate) => one.raw.equals(other.raw);
  const path = [leaf];
  for (let top = leaf; path.length < MAX_DEPTH;) {
    if (trusted.some(same(top))) return { certificates: path };
    const signers = [...trusted, ...others].filter((signer) => isSignedBy(top, signer) && !path.some(same(signer)));
    // A CA that was renewed with its key has several certificates. The one that holds now is taken.
    const signer = signers.find((one) => isValidAt(one, nowMs)) ?? signers[0];
    if (!signer) return { certificates: path, end: endOf(path, trusted) };
    path.push(signer);
    top = signer;
  }
  return { certificates: path, end: endOf(path, trusted) };
}

/** The certificates that the other side has sent, its own first, as many as a chain of people has. */
export function presented(socket: TLSSocket): readonly X509Certificate[] {
  const found: X509Certificate[] = [];
  let next = socket.getPeerX509Certificate();
  while (next && found.length < MAX_SENT) {
    const certificate = next;
    if (!found.some(({ raw }) => raw.equals(certificate.raw))) found.push(certificate);
    next = certificate.issuerCertificate;
  }
  return found;
}

/**
 * Returns the faults for which OpenSSL refuses a path, for a purpose: first that no trusted CA has signed it, then the faults
 * of each certificate, the leaf's first. Throws nothing, whatever the certificates.
 */
export function faultsOf({ certificates, end }: Path, purpose: Purpose, nowMs = Date.now()): readonly Fault[] {
  const anchored = end === undefined;
  return [
    ...(end ? [end] : []),
    ...certificates.flatMap((certificate, depth) => {
      const trusted = anchored && depth === certificates.length - 1;
      return [...faultsAt(certificate, { depth, trusted, purpose, nowMs })].map(([kind, says]) => ({
        kind,
        says,
        certificate,
        depth,
      }));
    }),
  ];
}

/**
 * Tells a fault in words, such as "the intermediate certificate (CN=lab) expired at …"; `leaf` names the certificate at
 * depth 0.
 */
export function tell({ certificate, depth, says }: Fault, leaf: string): string {
  const self = certificate.checkIssued(certificate);
  const who = depth === 0 ? leaf : self ? "the CA's certificate" : "the intermediate certificate";
  return `${who} (${nameOf(certificate)}) ${says}`;
}

/** Whether a certificate that holds now ends within 30 days. */
export function endsSoon({ validToDate }: X509Certificate, nowMs = Date.now()): boolean {
  const leftMs = validToDate.getTime() - nowMs;
  return leftMs >= 0 && leftMs < SOON_MS;
}

interface Place {
  readonly depth: number;
  readonly trusted: boolean;
  readonly purpose: Purpose;
  readonly nowMs: number;
}

function* faultsAt(certificate: X509Certificate, place: Place): Generator<[FaultKind, string]> {
  const { depth, trusted, purpose, nowMs } = place;
  const [from, to] = [certificate.validFromDate, certificate.validToDate];
  if (nowMs > to.getTime()) yield ["expired", `expired at ${to.toISOString()}`];
  if (nowMs < from.getTime()) yield ["not-yet-valid", `is valid only from ${from.toISOString()}`];
  if (Number.isNaN(from.getTime()) || Number.isNaN(to.getTime())) yield ["malformed", "has dates that cannot be read"];
  const publicKey = publicKeyOf(certificate);
  if (!publicKey) yield ["malformed", "has a public key that cannot be read"];
  const weakness = publicKey && weaknessOf(publicKey);
  if (weakness) yield ["weak-key", `has ${weakness}, which TLS 1.3 does not take`];
  const algorithm = certificate.signatureAlgorithm ?? "";
  // A trusted certificate's own signature proves nothing, and is not looked at.
  if (!trusted && /md[245]|sha1(?!\d)/i.test(algorithm)) {
    yield ["weak-signature", `is signed with ${algorithm}, which is refused as weak; sign it with SHA-256`];
  }
  if (!allows(certificate.raw, purpose) || (depth === 0 && !keyAllows(certificate.raw, purpose))) {
    yield ["purpose", `is not for ${purpose}s: its (extended) key usage has no ${purpose}Auth or no digitalSignature`];
  }
  if (depth > 0 && !maySign(certificate)) yield ["not-a-ca", "is not a CA's (CA:TRUE and keyCertSign)"];
  const below = pathLength(certificate);
  if (below !== undefined && depth - 1 > below) {
    yield ["path-length", `allows ${below} CAs below it (pathlen), and there are ${depth - 1}`];
  }
  if (extensions(certificate.raw)?.some(({ oidHex, critical }) => oidHex === ROLE_OID_HEX && critical)) {
    yield ["critical-extension", "has a role extension that is critical, which TLS refuses; leave critical out"];
  }
}

/** How many CAs may stand between this one and a leaf, RFC 5280, 4.2.1.9. */
function pathLength(certificate: X509Certificate): number | undefined {
  const constraints = extensions(certificate.raw)?.find(({ oidHex }) => oidHex === BASIC_CONSTRAINTS);
  const [sequence] = (constraints && elements(constraints.value)) ?? [];
  const limit = (sequence && elements(sequence.content))?.find(({ tag }) => tag === INTEGER)?.content;
  return limit?.length === 1 ? limit[0] : undefined;
}

/** Returns the reason why no issuer stands above the last certificate of `path`. */
function endOf(path: readonly X509Certificate[], trusted: readonly X509Certificate[]): Fault {
  const [leaf, top, depth] = [path[0], path.at(-1), path.length - 1];
  if (!leaf || !top) throw new Error("a path has a leaf");
  const issuer = top.issuer.replaceAll("\n", ", ");
  const root = top.checkIssued(top);
  if (root && depth === 0) {
    return { kind: "self-signed", certificate: leaf, depth: 0, says: "is signed by itself, and not by the CA" };
  }
  if (trusted.some(({ subject }) => subject === top.issuer)) {
    const says = `is signed by another CA of the same name, ${issuer}`;
    return { kind: "wrong-signature", certificate: root ? leaf : top, depth: root ? 0 : depth, says };
  }
  if (root) {
    return {
      kind: "no-issuer",
      certificate: leaf,
      depth: 0,
      says: `is signed by ${issuer}, which is not the CA given`,
    };
  }
  const says = `is signed by ${issuer}, whose certificate is neither given nor sent along`;
  return { kind: "no-issuer", certificate: top, depth, says };
}

function isSignedBy(certificate: X509Certificate, signer: X509Certificate): boolean {
  try {
    return certificate.checkIssued(signer) && certificate.verify(signer.publicKey);
  } catch {
    return false;
  }
}

function publicKeyOf(certificate: X509Certificate): KeyObject | undefined {
  try {
    return certificate.publicKey;
  } catch {
    return undefined;
  }
}

function isValidAt({ validFromDate, validToDate }: X509Certificate, nowMs: number): boolean {
  return validFromDate.getTime() <= nowMs && nowMs <= validToDate.getTime();
}
