import type { X509Certificate } from "node:crypto";
import { reasonOf } from "../src/os/errno.ts";
import { type Crl, crlsIn } from "../src/x509/crl.ts";
import { serialKey } from "../src/x509/der.ts";
import { authoritiesIn, nameOf } from "../src/x509/pem.ts";
import { type IndexEntry, indexOf, readIndex } from "./ca-index.ts";
import { existingCrl } from "./crl.ts";
import { caFiles, readFrom } from "./files.ts";

/** All that a CA has signed, as far as its index knows. */
export interface CaRegister {
  readonly ca: { readonly subject: string; readonly until: string; readonly index: string };
  /** The list of what it has revoked; absent where there is none. */
  readonly crl?: { readonly path: string; readonly number: number; readonly revoked: number; readonly until: string };
  readonly certificates: readonly (IndexEntry & { readonly state: "valid" | "expired" | "revoked" })[];
  /** Faults of the index or of the list, each with its remedy. */
  readonly faults: readonly string[];
}

/** Lists what a CA has signed. Needs no key. Throws CertError. */
export async function register(ca: string, now = new Date()): Promise<CaRegister> {
  const files = await caFiles(ca);
  const [{ certificate } = { certificate: undefined }] = await readFrom(files.crt, authoritiesIn);
  if (!certificate) throw new Error("a file of CAs has one");
  const { entries, damaged } = await readIndex(indexOf(files, certificate));
  const faults = damaged.map((line) => `${files.index}:${line}: is no line of an index, and was left out`);
  const list = await listOf(files.crl, certificate).catch((error: unknown) => void faults.push(reasonOf(error)));
  const certificates: CaRegister["certificates"][number][] = [];
  for (const entry of entries.values()) certificates.push({ ...entry, state: stateOf(entry, now) });
  const lacking = certificates.filter(
    ({ revoked, until, serial }) =>
      revoked && (!until || new Date(until) > now) && !list?.serials.has(serialKey(Buffer.from(`00${serial}`, "hex"))),
  );
  if (lacking.length > 0)
    faults.push(`${files.crl}: lacks ${lacking.length} of the revoked; jobsctl certs crl writes it anew`);
  if (list && list.nextUpdate < now)
    faults.push(`${files.crl}: expired at ${list.nextUpdate.toISOString()}; jobsctl certs crl writes it anew`);
  return {
    ca: { subject: nameOf(certificate), until: certificate.validToDate.toISOString(), index: files.index },
    ...(list && {
      crl: {
        path: files.crl,
        number: Number(list.number ?? 0),
        revoked: list.serials.size,
        until: list.nextUpdate.toISOString(),
      },
    }),
    certificates,
    faults,
  };
}

/** The CA's list; undefined where there is none. Throws PemError. */
async function listOf(path: string, certificate: X509Certificate): Promise<Crl | undefined> {
  const contents = await existingCrl(path);
  return contents && (await crlsIn(contents, path, [certificate])).lists[0];
}

function stateOf({ revoked, until }: IndexEntry, now: Date): "valid" | "expired" | "revoked" {
  if (revoked) return "revoked";
  return new Date(until) < now ? "expired" : "valid";
}
