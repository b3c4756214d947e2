import type { Writable } from "node:stream";
import type { Logger } from "pino";
import { openAuditFile, type AuditLimits } from "./audit-file.ts";
import type { Certificate, Principal } from "../x509/identity.ts";
import { AUDIT_LIMITS } from "./limits.ts";

/** One line of the audit log. */
export interface AuditRecord {
  /** All records of one call have the same id. */
  readonly id: string;
  readonly event: "call" | "connection";
  /** Present where a call changes something or lasts: it is recorded before it is handled, and again when it has ended. */
  readonly stage?: "begin" | "end";
  readonly method?: string;
  /** Address and port of the other side; absent where the record is of many connections. */
  readonly peer?: string;
  /** The holder of the verified certificate; `role` is absent when the certificate has no valid role. */
  readonly principal?: AuditedPrincipal;
  /** The claims of a certificate that was not verified. */
  readonly presented?: AuditedPrincipal;
  readonly decision: "allowed" | "denied";
  /** Why the call was denied, or ended otherwise than by its handler. With `OTHER_OWNER` the client was told NOT_FOUND. */
  readonly reason?: string;
  /** Name of the gRPC status. */
  readonly code?: string;
  readonly jobId?: string;
  /** The place of the call in its client's trace (w3.org/TR/trace-context). */
  readonly traceparent?: string;
  readonly durationMs?: number;
  /** Names and counts; arguments and variables may be secrets. */
  readonly request?: {
    readonly command?: string;
    readonly argc?: number;
    readonly limits?: readonly string[];
    /** The conditions of a pruning of jobs. */
    readonly prune?: Readonly<Record<string, number | boolean>>;
  };
  /** How many jobs a pruning removed, or would have. */
  readonly pruned?: number;
  /** How often each kind was refused without a record of its own, since `since`. */
  readonly more?: Readonly<Record<string, number>>;
  readonly since?: string;
}

interface AuditedPrincipal {
  readonly name: string;
  /** The owner of its jobs, where that is not the name: the whole subject. */
  readonly subject?: string;
  readonly serial: string;
  readonly fingerprint: string;
  readonly role?: string;
}

export interface Audit {
  /**
   * Appends one record with the present time; throws when the record is not on its way to the disk. A file has such a record
   * later, before the next one, unless 1000 others have failed since.
   */
  write(record: AuditRecord): void;
  /**
   * Opens the file that the path names now. Returns what goes on in that, within these limits; the caller calls it at once.
   * Throws when the file cannot be opened, and goes on in the old one.
   */
  reopen(limits?: AuditLimits): () => void;
  close(): void;
}

const MAX_LATE = 1000;
/** Characters that a line may have; the texts and lists of a longer line are cut. */
const LINE_LENGTH = 4096;
const TEXT_LENGTH = 256;
const LIST_LENGTH = 16;

/**
 * Opens an audit log: JSON lines, appended to the file at a path, or to a stream, which `close` leaves open. A line is in
 * the file by one write(2) before `write` returns.
 *
 * @param failed is told what goes wrong with the files that others have followed
 */
export function openAudit(
  target: string | Writable,
  limits: AuditLimits = AUDIT_LIMITS,
  failed: (error: unknown) => void = () => {},
): Audit {
  if (typeof target !== "string")
    return { write: (record) => writeTo(target, line(record)), reopen: () => () => {}, close: () => {} };
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
    reopen: (next = limits) => (open ? file.reopen(next) : () => {}),
    close() {
      if (open) file.close();
      open = false;
    },
  };
}

/** Returns the part of a certificate that is recorded. */
export function audited(certificate: Certificate | Principal): AuditedPrincipal {
  const { name, subject, serial, fingerprint256: fingerprint } = certificate;
  const told = { name, ...(subject !== name && { subject }), serial, fingerprint };
  return { ...told, ...("role" in certificate && { role: certificate.role }) };
}

function line(record: AuditRecord): string {
  const timed = { time: new Date().toISOString(), ...record };
  const text = JSON.stringify(timed);
  return `${text.length > LINE_LENGTH ? JSON.stringify(timed, (_, value: unknown) => cut(value)) : text}\n`;
}

/** Returns a record for the daemon's log, with long texts and lists cut: a stranger's may have any length. */
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

/** Writes a record; false when it is not on its way to the disk, which is logged with its reason. */
export function writeRecord(audit: Pick<Audit, "write">, log: Logger, record: AuditRecord): boolean {
  try {
    audit.write(record);
    return true;
  } catch (error) {
    log.error({ err: error, record: short(record) }, "audit record lost");
    return false;
  }
}
