import type { X509Certificate } from "node:crypto";
import { endsSoon, faultsOf, pathOf, tell } from "../x509/chain.ts";
import { crlsIn, type CrlFile, readCrlFile } from "../x509/crl.ts";
import { authoritiesIn, nameOf, parseTls, PemError, TlsFileError, type TlsFiles, type TlsPem } from "../x509/pem.ts";

type ServeErrorCode =
  | "bad-ca"
  | "bad-crl"
  | "bad-certificate"
  | "bad-key"
  | "key-mismatch"
  | "no-verifier"
  | "port-in-use"
  | "cannot-listen";

/** The reason why a server cannot be opened: `code` is for programs; the message names the option that is wrong. */
export class ServeError extends Error {
  override readonly name = "ServeError";
  readonly code: ServeErrorCode;

  constructor(code: ServeErrorCode, message: string, cause?: unknown) {
    super(message, { cause });
    this.code = code;
  }
}

const CODES = { ca: "bad-ca", cert: "bad-certificate", key: "bad-key" } as const;

/** A fault that clients refuse now or soon, and the certificate that has it. */
export interface Problem {
  readonly certificate: X509Certificate;
  readonly message: string;
}

/** Reads the server's own files. Throws ServeError when they cannot work. */
export function readTls(given: TlsPem): TlsFiles {
  try {
    const files = parseTls(given);
    requireRoots(files.authorities);
    return files;
  } catch (error) {
    if (!(error instanceof TlsFileError)) throw error;
    const code = error.code === "mismatch" ? "key-mismatch" : CODES[error.part];
    throw new ServeError(code, error.message, error);
  }
}

/**
 * Reads a file of lists of revoked certificates, each signed by one of the CAs of `ca`. Throws ServeError, which names the
 * file, for one that cannot be relied on, and for one without a list of any of these CAs.
 */
export async function readCrls(path: string, ca: TlsPem["ca"]): Promise<CrlFile> {
  try {
    const authorities = authoritiesIn(ca, "ca").map(({ certificate }) => certificate);
    const file = await crlsIn(await readCrlFile(path), path, authorities);
    if (file.lists.length > 0) return file;
    const names = authorities.map(nameOf).join("; ");
    throw new PemError("mismatch", `${path}: holds no list of a CA that clients are trusted by (${names})`);
  } catch (error) {
    if (!(error instanceof PemError)) throw error;
    throw new ServeError("bad-crl", error.message, error);
  }
}

/** Throws ServeError when a root is missing: Node's TLS server has no allowPartialTrustChain, as clients have. */
function requireRoots(authorities: readonly X509Certificate[]): void {
  const roots = authorities.filter((authority) => authority.checkIssued(authority));
  for (const authority of authorities) {
    const { end } = pathOf(authority, authorities, roots);
    if (!end) continue;
    const top = nameOf(end.certificate);
    const issuer = end.certificate.issuer.replaceAll("\n", ", ");
    const message = `ca: ${top} is an intermediate CA, and the CA that signed it, ${issuer}, is not given: put its certificate into the same file`;
    throw new ServeError("bad-ca", message);
  }
}

/** Finds the faults of the server's chain and of its CAs, among them certificates that end within 30 days. */
export function problemsOf({ own, chain, authorities }: TlsFiles, nowMs = Date.now()): readonly Problem[] {
  const path = pathOf(own, chain, authorities, nowMs);
  const faults = faultsOf(path, "server", nowMs);
  const problems: Problem[] = faults.map((fault) => ({
    certificate: fault.certificate,
    message: `${tell(fault, "the worker's certificate")}: clients will refuse it`,
  }));
  if (own.subjectAltName === undefined) {
    const message = `the worker's certificate (${nameOf(own)}) has no subject alternative name, and a common name does not count: clients will refuse it`;
    problems.push({ certificate: own, message });
  }
  const others = authorities.filter((authority) => !path.certificates.some((one) => one.raw.equals(authority.raw)));
  for (const certificate of [...path.certificates, ...others]) {
    const [end, endMs] = [certificate.validToDate.toISOString(), certificate.validToDate.getTime()];
    const who = certificate === own ? "the worker's certificate" : "the CA's certificate";
    const what = `${who} (${nameOf(certificate)})`;
    if (endMs < nowMs) {
      if (others.includes(certificate))
        problems.push({ certificate, message: `${what} expired at ${end}: clients that it signed are refused` });
    } else if (endsSoon(certificate, nowMs)) problems.push({ certificate, message: `${what} expires at ${end}` });
  }
  return problems;
}
