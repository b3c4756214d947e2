import type { Writable } from "node:stream";
import type { Logger } from "pino";
import { openAuditFile, type AuditLimits } from "./audit-file.ts";
import type { Certificate, Principal } from "../x509/identity.ts";
import { AUDIT_LIMITS } from "./limits.ts";

/** One line of the audit log. */
export interface AuditRecord {
  /** The same in the records of one call. */
  readonly id: string;
  readonly event: "call" | "connection";
  /** Of calls that change something or last: recorded before they are handled, and again when they have ended. */
  readonly stage?: "begin" | "end";
  readonly method?: string;
  /** Address and port of the other side; absent where it is of many. */
  readonly peer?: string;
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
  /** What was refused otherwise than in records of its own, by what and how often, since `since`. */
  readonly more?: Readonly<Record<string, number>>;
  readonly since?: string;
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
  /** Goes on in the file that the path names now. Throws, and goes on as it was, when that cannot be opened. */
  reopen(): void;
  close(): void;
}

const MAX_LATE = 1000;
/** A line that is longer has its texts and lists cut. */
const LINE_LENGTH = 4096;
const TEXT_LENGTH = 256;
const LIST_LENGTH = 16;

/**
 * Opens an audit log: JSON lines, appended to the file at a path or to a stream that stays the caller's. Writing to a file
 * is one write(2) of one line, before `write` returns; `failed` is told of what goes wrong with files before it.
 */
export function openAudit(
  target: string | Writable,
  limits: AuditLimits = AUDIT_LIMITS,
  failed: (error: unknown) => void = () => {},
): Audit {
  if (typeof target !== "string")
    return { write: (record) => writeTo(target, line(record)), reopen: () => {}, close: () => {} };
  const file = openAuditFile(target, limits, failed);
  let open = true;
  const late: string[] = [];
  return {
    write(record) {
      if (!open) throw new Error("the audit log is closed");
      late.push(line(record));
      if (late.length > MAX_LATE) late.shift();
      for (let text = late[0]; text !== undefined; text = late[0]) {
        file.append(text);
        late.shift();
      }
    },
    reopen() {
      if (open) file.reopen();
    },
    close() {
      if (open) file.close();
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
  const timed = { time: new Date().toISOString(), ...record };
  const text = JSON.stringify(timed);
  return `${text.length > LINE_LENGTH ? JSON.stringify(timed, (_, value: unknown) => cut(value)) : text}\n`;
}

/** A record as it may be told elsewhere: what strangers give has any length. */
function short(record: AuditRecord): unknown {
  return JSON.parse(JSON.stringify(record, (_, value: unknown) => cut(value)));
}

function cut(value: unknown): unknown {
  if (typeof value === "string" && value.length > TEXT_LENGTH) return `${value.slice(0, TEXT_LENGTH).toWellFormed()}…`;
  if (!Array.isArray(value) || value.length <= LIST_LENGTH) return value;
  return [...value.slice(0, LIST_LENGTH), `… ${value.length - LIST_LENGTH} more`];
}

function writeTo(stream: Writable, text: string): void {
  if (!stream.writable) throw new Error("the audit stream is closed");
  stream.write(text);
}

/** True when the record is on its way to the disk; the reason is logged when not. */
export function writeRecord(audit: Pick<Audit, "write">, log: Logger, record: AuditRecord): boolean {
  try {
    audit.write(record);
    return true;
  } catch (error) {
    log.error({ err: error, record: short(record) }, "audit record lost");
    return false;
  }
}
