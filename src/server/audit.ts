import { closeSync, fchmodSync, openSync, writeSync } from "node:fs";
import type { Writable } from "node:stream";
import type { Certificate, Principal } from "./identity.ts";

/** One line of the audit log. */
export interface AuditRecord {
  /** The same in the records of one call. */
  readonly id: string;
  readonly event: "call" | "connection";
  /** Of calls that change something or last: recorded before they are handled, and again when they have ended. */
  readonly stage?: "begin" | "end";
  readonly method?: string;
  /** Address and port of the other side. */
  readonly peer: string;
  /** By verified certificate; `role` is absent when it has no valid one. */
  readonly principal?: AuditedPrincipal;
  /** What a certificate claims that was not verified. */
  readonly presented?: AuditedPrincipal;
  readonly decision: "allowed" | "denied";
  /** Why it was denied, or ended otherwise than by its handler. */
  readonly reason?: string;
  /** Name of the gRPC status. */
  readonly code?: string;
  readonly jobId?: string;
  readonly durationMs?: number;
  /** Names and counts only: arguments and environment may be secrets. */
  readonly request?: { readonly command?: string; readonly argc?: number; readonly limits?: readonly string[] };
  /** Refused connections before this one that were not recorded. */
  readonly suppressed?: number;
}

interface AuditedPrincipal {
  readonly name: string;
  readonly serial: string;
  readonly fingerprint: string;
  readonly role?: string;
}

export interface Audit {
  /**
   * Appends one record with the time it is written at; throws when it is not on its way to the disk. To a file it is
   * appended later then, before those behind it, as long as they are no more than 1000.
   */
  write(record: AuditRecord): void;
  close(): void;
}

const MAX_LATE = 1000;

/**
 * Opens an audit log: JSON lines, appended to the file at a path (made with mode 0600) or to a stream that stays the
 * caller's. Writing to a file is one write(2) of one line, before `write` returns.
 */
export function openAudit(target: string | Writable): Audit {
  if (typeof target !== "string") return { write: (record) => writeTo(target, line(record)), close: () => undefined };
  const fd = openSync(target, "a", 0o600);
  fchmodSync(fd, 0o600);
  let torn = false;
  let open = true;
  const late: string[] = [];

  const append = (text: string): void => {
    const bytes = Buffer.from(torn ? `\n${text}` : text);
    // Only a full disk or a limit cuts a line short; it must not take the next one with it.
    const written = writeSync(fd, bytes);
    torn = written < bytes.length;
    if (torn) throw new Error(`${target}: only ${written} of ${bytes.length} bytes could be written`);
  };

  return {
    write(record) {
      if (!open) throw new Error("the audit log is closed");
      late.push(line(record));
      if (late.length > MAX_LATE) late.shift();
      for (let text = late[0]; text !== undefined; text = late[0]) {
        append(text);
        late.shift();
      }
    },
    close() {
      if (open) closeSync(fd);
      open = false;
    },
  };
}

/** The part of a certificate that is recorded. */
export function audited(certificate: Certificate | Principal): AuditedPrincipal {
  const { name, serial, fingerprint256 } = certificate;
  return { name, serial, fingerprint: fingerprint256, ...("role" in certificate && { role: certificate.role }) };
}

function line(record: AuditRecord): string {
  return `${JSON.stringify({ time: new Date().toISOString(), ...record })}\n`;
}

function writeTo(stream: Writable, text: string): void {
  if (!stream.writable) throw new Error("the audit stream is closed");
  stream.write(text);
}
