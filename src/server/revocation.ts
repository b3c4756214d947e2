import type { X509Certificate } from "node:crypto";
import { pathOf } from "../x509/chain.ts";
import { caKey, type Crl, type CrlFile, isNewer } from "../x509/crl.ts";
import { serialOf } from "../x509/der.ts";
import type { Refused } from "../x509/identity.ts";
import { nameOf, PemError } from "../x509/pem.ts";

/** A certificate of a client's chain, as its CA's list has it. */
export interface Link {
  /** The CA by caKey(); empty where the chain ends without a root: what it goes on with is not known. */
  readonly ca: string;
  /** By serialKey(). */
  readonly serial: string;
  /** The certificate's name and its CA's, for people. */
  readonly name: string;
  readonly issuer: string;
}

/** What becomes of clients while the list of a CA in their chain has expired, or is missing. */
export type FaultyLists = "refuse" | "warn";

/** The lists of revoked certificates that are in force. */
export interface Revocation {
  /**
   * Returns what tells at any time why a client is refused: a look into a set for each certificate of its chain.
   *
   * @param sent the certificates that it has sent, its own first; TLS has verified them
   */
  of(
    sent: readonly X509Certificate[],
    authorities: readonly X509Certificate[],
  ): (nowMs?: number) => Refused | undefined;
  readonly lists: readonly Crl[];
  /** Puts the lists of a file in the place of those in force. */
  replace(file: CrlFile): void;
  /** Calls `changed` when other lists are in force, and when one has expired. */
  watch(changed: () => void): Disposable;
  /**
   * Throws PemError for a list that is older than the one in force, and for a file without one in force whose CA is among
   * `authorities`: certificates that were revoked since may be missing.
   */
  requireNewer(file: CrlFile, authorities: readonly X509Certificate[]): void;
}

/** A list may be a little ahead of this host's clock. */
const SKEW_MS = 5 * 60_000;
/** A timer cannot wait longer. */
const MAX_WAIT_MS = 2 ** 31 - 1;

/**
 * The certificates of a client's chain that are checked: each but the root, which nobody can revoke. The chain is followed up
 * to the root, also past a CA below it that is trusted. As in OpenSSL, a trusted CA goes before one that was sent: a client may
 * send another one of its name and key.
 *
 * @param sent the certificates that the client has sent, its own first; TLS has verified them
 */
export function linksOf(sent: readonly X509Certificate[], authorities: readonly X509Certificate[]): readonly Link[] {
  const [own] = sent;
  if (!own) return [];
  const roots = authorities.filter((authority) => authority.checkIssued(authority));
  const { certificates } = pathOf(own, [...authorities, ...sent], roots);
  const top = certificates.at(-1);
  // A chain whose root is not found has nobody who could tell of its top.
  const checked = top && roots.some(({ raw }) => raw.equals(top.raw)) ? certificates.slice(0, -1) : certificates;
  return checked.map((certificate, depth) => {
    const issuer = certificates[depth + 1];
    return {
      ca: issuer ? caKey(issuer) : "",
      serial: serialOf(certificate.raw) ?? "",
      name: nameOf(certificate),
      issuer: certificate.issuer.replaceAll("\n", ", "),
    };
  });
}

/**
 * @param faulty what becomes of clients without a list that holds now; who is known to be revoked, or sent a chain that cannot be
 * checked up to its root, is refused in either case
 */
export function revocation(faulty: FaultyLists, file: CrlFile): Revocation {
  let lists = new Map(file.lists.map((list) => [list.ca, list]));
  let told = (): void => {};
  let timer: NodeJS.Timeout | undefined;

  function waitForEnd(): void {
    clearTimeout(timer);
    const nowMs = Date.now();
    const endsMs = [...lists.values()].map(({ nextUpdate }) => nextUpdate.getTime()).filter((endMs) => endMs >= nowMs);
    if (endsMs.length === 0) return;
    const leftMs = Math.min(...endsMs) - nowMs + 1;
    const early = leftMs > MAX_WAIT_MS;
    timer = setTimeout(() => (early ? waitForEnd() : change()), early ? MAX_WAIT_MS : leftMs).unref();
  }

  function change(): void {
    waitForEnd();
    told();
  }

  function refusal(links: readonly Link[], nowMs: number): Refused | undefined {
    let refused: Refused | undefined;
    for (const link of links) {
      const list = lists.get(link.ca);
      if (list?.serials.has(link.serial)) return revoked(link);
      if (faulty === "refuse") refused ??= faultOf(list, link, nowMs);
      if (link.ca === "") return incomplete(link);
    }
    return refused;
  }

  return {
    of(sent, authorities) {
      const links = linksOf(sent, authorities);
      return (nowMs = Date.now()) => refusal(links, nowMs);
    },
    get lists() {
      return [...lists.values()];
    },
    requireNewer(next, authorities) {
      requireAll([...lists.values()], next, authorities);
      for (const list of next.lists) {
        const inForce = lists.get(list.ca);
        if (!inForce || !isNewer(inForce, list)) continue;
        const why = `is number ${list.number ?? "unknown"}, and number ${inForce.number ?? "unknown"} is in force`;
        throw new PemError("mismatch", `the list of ${list.issuer} ${why}: give the newest one`);
      }
    },
    replace(next) {
      lists = new Map(next.lists.map((list) => [list.ca, list]));
      change();
    },
    watch(changed) {
      told = changed;
      waitForEnd();
      return { [Symbol.dispose]: () => clearTimeout(timer) };
    },
  };
}

/** Throws PemError where a list in force, whose CA is still trusted, is not in a file. */
function requireAll(inForce: readonly Crl[], { lists }: CrlFile, authorities: readonly X509Certificate[]): void {
  const trusted = new Set(authorities.map(caKey));
  const missing = inForce.find(({ ca }) => trusted.has(ca) && !lists.some((list) => list.ca === ca));
  if (!missing) return;
  const { issuer, number = "unknown" } = missing;
  const why = `number ${number}, is in force and not in the file: put it in, or trust that CA no more`;
  throw new PemError("mismatch", `the list of ${issuer}, ${why}`);
}

function revoked({ name, issuer }: Link): Refused {
  const message = `the certificate of ${JSON.stringify(name)} was revoked by its CA, ${issuer}: ask for a new one`;
  return { ok: false, reason: "CERTIFICATE_REVOKED", message };
}

function incomplete({ name, issuer }: Link): Refused {
  const found = `no certificate of ${issuer}, which signed that of ${JSON.stringify(name)}, is known or among the first sent`;
  const message = `whether a CA of the chain is revoked is not known: ${found}; send the chain alone, in its order`;
  return { ok: false, reason: "CHAIN_INCOMPLETE", message };
}

function faultOf(list: Crl | undefined, { issuer }: Link, nowMs: number): Refused | undefined {
  const refused = (reason: Refused["reason"], why: string): Refused => ({
    ok: false,
    reason,
    message: `whether certificates of ${issuer} are revoked is not known: ${why}; whoever runs the worker has to renew it`,
  });
  if (!list) return refused("CRL_MISSING", "the worker has no list (CRL) of this CA");
  if (nowMs > list.nextUpdate.getTime())
    return refused("CRL_EXPIRED", `the worker's list (CRL) expired at ${list.nextUpdate.toISOString()}`);
  if (nowMs < list.thisUpdate.getTime() - SKEW_MS)
    return refused("CRL_NOT_YET_VALID", `the worker's list (CRL) is valid from ${list.thisUpdate.toISOString()}`);
  return undefined;
}
