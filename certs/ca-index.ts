import type { X509Certificate } from "node:crypto";
import { open, readFile } from "node:fs/promises";
import { dirname } from "node:path";
import { codeOf, meaningOf } from "../src/os/errno.ts";
import { makeDirectory } from "../src/os/directory.ts";
import { caKey } from "../src/x509/crl.ts";
import { CertError } from "./error.ts";
import { type CaFiles, type NewFile, writeFiles } from "./files.ts";
import type { CertificateDescription } from "./inspect.ts";
import { isReason, type Reason } from "./reason.ts";

/** A certificate that a CA has signed. */
export interface IndexEntry {
  /** The serial number in hexadecimal, as Node writes it. */
  readonly serial: string;
  readonly subject: string;
  readonly role: string;
  /** ISO 8601, as are all times here. */
  readonly until: string;
  /** Absent where a certificate was revoked that the index did not know. */
  readonly signed?: string;
  readonly revoked?: { readonly at: string; readonly reason: Reason };
}

/** The index of a CA, as it is now. */
export interface CaIndex {
  /** The certificates by serial number, in the order of signing. */
  readonly entries: ReadonlyMap<string, IndexEntry>;
  /** How many lines there are, of all CAs that have used the file. It only grows. */
  readonly lines: number;
  /** The numbers of lines that cannot be read, as the last one of a disk that was full. */
  readonly damaged: readonly number[];
}

/** A line of the index: a certificate was signed or revoked. `ca` tells apart the CAs that one file has had. */
type Event = { readonly ca: string } & (
  | (Omit<IndexEntry, "revoked"> & { readonly signed: string })
  | (Partial<Pick<IndexEntry, "subject" | "role" | "until">> & {
      readonly serial: string;
      readonly revoked: string;
      readonly reason: Reason;
    })
  | { readonly serial: string; readonly withdrawn: string }
  | { readonly crl: string }
);

/** A CA's place in its index. */
export interface IndexPlace {
  readonly path: string;
  readonly ca: string;
}

export function indexOf({ index }: CaFiles, certificate: X509Certificate): IndexPlace {
  return { path: index, ca: caKey(certificate).slice(0, 16) };
}

/** Reads a CA's index; one that is not there yet is empty. Throws CertError `unreadable`. */
export async function readIndex({ path, ca }: IndexPlace): Promise<CaIndex> {
  const text = await readFile(path, "utf8").catch((error: unknown) => {
    if (codeOf(error) === "ENOENT") return "";
    throw new CertError("unreadable", `${path}: ${meaningOf(error)}`, error);
  });
  const entries = new Map<string, IndexEntry>();
  const damaged: number[] = [];
  let lines = 0;
  for (const [at, line] of text.split("\n").entries()) {
    if (line === "") continue;
    lines++;
    const event = eventIn(line);
    if (!event) damaged.push(at + 1);
    else if (event.ca === ca) take(event, entries);
  }
  return { entries, lines, damaged };
}

/**
 * Hands out certificates: puts them into the index, and writes their files. Where that fails, the index has them no more. A
 * signer that is killed between leaves an entry too many, and never one too few. Throws CertError.
 */
export async function handOut(
  place: IndexPlace,
  certificates: readonly CertificateDescription[],
  files: readonly NewFile[],
  { force = false, now }: { readonly force?: boolean; readonly now: Date },
): Promise<void> {
  const [ca, at] = [place.ca, now.toISOString()];
  await append(
    place.path,
    certificates.map(({ serial, subject, role, notAfter: until }) => {
      return { ca, signed: at, serial, subject, role: role ?? "worker", until };
    }),
  );
  try {
    await writeFiles(files, force);
  } catch (error) {
    const events = certificates.map(({ serial }) => ({ ca, withdrawn: at, serial }));
    await append(place.path, events).catch(() => undefined);
    throw error;
  }
}

/** Adds that a certificate is revoked. */
export function noteRevoked(
  { path, ca }: IndexPlace,
  entry: Partial<IndexEntry> & { readonly serial: string },
  revoked: { readonly at: string; readonly reason: Reason },
): Promise<void> {
  const { serial, subject, role, until } = entry;
  const known = { ...(subject !== undefined && { subject }), ...(role && { role }), ...(until && { until }) };
  return append(path, [{ ca, revoked: revoked.at, serial, ...known, reason: revoked.reason }]);
}

/** Adds that a list is about to be signed, so that its number is another than that of the one before. */
export function noteCrl({ path, ca }: IndexPlace, now: Date): Promise<void> {
  return append(path, [{ ca, crl: now.toISOString() }]);
}

function take(event: Event, entries: Map<string, IndexEntry>): void {
  if ("crl" in event) return;
  const { serial } = event;
  const known = entries.get(serial);
  if ("withdrawn" in event) entries.delete(serial);
  else if ("revoked" in event) {
    const { subject = "", role = "", until = "", revoked, reason } = event;
    // The first revocation counts: a second one does not make it later.
    entries.set(serial, { subject, role, until, ...known, serial, revoked: known?.revoked ?? { at: revoked, reason } });
  } else {
    const { subject, role, until, signed } = event;
    entries.set(serial, { ...known, serial, subject, role, until, signed });
  }
}

/** Reads a line; undefined when it is none of an index. */
function eventIn(line: string): Event | undefined {
  try {
    const read: unknown = JSON.parse(line);
    return isEvent(read) ? read : undefined;
  } catch {
    return undefined;
  }
}

function isEvent(read: unknown): read is Event {
  if (typeof read !== "object" || read === null) return false;
  const text = (name: string): string => (name in read ? String(Reflect.get(read, name)) : "");
  const isTime = (name: string): boolean => !Number.isNaN(Date.parse(text(name)));
  if (text("ca") === "") return false;
  if ("crl" in read) return isTime("crl");
  // It goes into lists as it is.
  if (!/^([0-9A-F]{2})+$/.test(text("serial")) || ("until" in read && !isTime("until"))) return false;
  if ("withdrawn" in read) return true;
  if ("revoked" in read) return isTime("revoked") && isReason(text("reason"));
  return isTime("signed") && ["subject", "role", "until"].every((name) => text(name) !== "");
}

/**
 * Appends lines by one write(2), between which and those of other signers the kernel decides, so that nobody waits for a lock
 * of a killed signer. Throws CertError `unwritable`; nothing may be handed out then.
 */
async function append(path: string, events: readonly Event[]): Promise<void> {
  const lines = events.map((event) => `${JSON.stringify(event)}\n`).join("");
  try {
    makeDirectory(dirname(path));
    await using file = await open(path, "a+", 0o600);
    const { size } = await file.stat();
    const last = size > 0 ? (await file.read(Buffer.alloc(1), 0, 1, size - 1)).buffer.toString() : "\n";
    // Half a line, as a full disk leaves it, must not take this one along.
    const bytes = Buffer.from(last === "\n" ? lines : `\n${lines}`);
    const { bytesWritten } = await file.write(bytes);
    if (bytesWritten < bytes.length) throw new CertError("unwritable", `${path}: there is no room for a line`);
    await file.sync();
  } catch (error) {
    if (error instanceof CertError) throw error;
    throw new CertError("unwritable", `${path}: ${meaningOf(error)}; the CA's index has to be kept`, error);
  }
  await syncDirectory(dirname(path));
}

/** Has the name of a new file outlast a power cut, where directories can be opened. */
async function syncDirectory(path: string): Promise<void> {
  try {
    await using directory = await open(path, "r");
    await directory.sync();
  } catch {
    // Windows opens no directory.
  }
}
