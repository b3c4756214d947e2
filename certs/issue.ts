import { hostname } from "node:os";
import { resolve } from "node:path";
import { createAuthority, nodeCertificate, sign, toPem } from "./authority.ts";
import { handOut, indexOf } from "./ca-index.ts";
import { caFiles, refuseExisting } from "./files.ts";
import { isHost } from "./host.ts";
import { type CertificateDescription, describe } from "./inspect.ts";
import { generateKey, keyToPem } from "./key.ts";
import { createRequest, parseRequest } from "./request.ts";

export interface IssueOptions {
  /** The directory for the files; made 0700 when it is not there. */
  readonly out: string;
  /** More names and addresses that the worker is reached by, besides this host's own. */
  readonly hosts?: readonly string[] | undefined;
  /** RSA key size, 2048 to 8192; 4096 when absent. */
  readonly bits?: number | undefined;
  /** Life of the leaves in days, 1 to 3650; 90 when absent. The CA lives 10 years. */
  readonly days?: number | undefined;
  /** Replace files that are there. */
  readonly force?: boolean | undefined;
  /** The time at which the certificates' lives begin. A time long past makes expired certificates. */
  readonly now?: Date | undefined;
}

/** Parties of a first session. An admin is nobody's until an operator asks for one. */
const FIRST = ["worker", "writer", "reader"] as const;

/** A certificate, and the files of it and its key. */
export interface Issued {
  readonly name: "ca" | (typeof FIRST)[number];
  readonly crt: string;
  readonly key: string;
  readonly certificate: CertificateDescription;
}

/**
 * Makes a CA and, by request and signature, the certificates of a worker, a writer and a reader:
 * NAME.crt (0644) and NAME.key (0600) in `out`, and the CA's index. Writes all eight files or none.
 * Throws CertError: `invalid` names the option, `exists` the file that is there already.
 */
export async function issueAll(options: IssueOptions): Promise<Issued[]> {
  const { out, hosts = [], bits, days, force = false, now = new Date() } = options;
  const place = (name: Issued["name"]) => ({ crt: resolve(out, `${name}.crt`), key: resolve(out, `${name}.key`) });
  if (!force) {
    await refuseExisting((["ca", ...FIRST] as const).flatMap((name) => [place(name).crt, place(name).key]));
  }
  // The four keys are nearly all of the time that this takes, and are made on as many threads.
  const [authority, ...keys] = await Promise.all([
    createAuthority({ bits, now }),
    ...FIRST.map(async (name) => ({ name, key: await generateKey(bits) })),
  ]);
  const leaves = await Promise.all(
    keys.map(async ({ name, key }) => {
      const csr = await createRequest(name, key, name === "worker" ? [...localHosts(), ...hosts] : []);
      const request = await parseRequest(csr, name);
      return { name, key, pem: await sign(authority, request, { profile: name, days, now, minBits: bits }) };
    }),
  );
  const made = [{ name: "ca" as const, key: authority.key, pem: toPem(authority.certificate) }, ...leaves];
  const issued = made.map(({ name, pem }) => {
    const { crt, key } = place(name);
    return { name, crt, key, certificate: describe(pem, crt) };
  });
  const signed = issued.map(({ certificate }) => certificate).filter(({ ca }) => !ca);
  const files = made.flatMap(({ name, key, pem }) => [
    { path: place(name).key, text: keyToPem(key), mode: 0o600 as const },
    { path: place(name).crt, text: pem, mode: 0o644 as const },
  ]);
  const index = indexOf(await caFiles(place("ca").crt), nodeCertificate(authority.certificate));
  // The index is of now, also where the certificates' lives are not.
  await handOut(index, signed, files, { force, now: new Date() });
  return issued;
}

/** Describes the certificates that were made, for people: one a line. */
export function formatIssued(issued: readonly Issued[]): string[] {
  const lines = issued.map(({ crt, certificate: { notAfter, role, hosts, key, ca } }) => {
    const what = ca ? "signs the others; keep its key offline" : (role ?? hosts.join(" "));
    return `${crt}  until ${notAfter.slice(0, 10)}  RSA ${key.bits}  ${what}`;
  });
  return [...lines, "Each has its private key beside it, as NAME.key."];
}

/** The names and addresses by which a daemon on this host is reached from this host. */
function localHosts(): string[] {
  return ["localhost", "127.0.0.1", "::1", hostname()].filter(isHost);
}
