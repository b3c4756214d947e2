import type { Audit } from "./audit.ts";

/** Hears what a server does, as it happens, on the path of a call: it takes no time, and throws nothing. */
export interface ServerMeter {
  /** A call has come, and has a handler. */
  opened(path: string): void;
  /** That call is over, with gRPC's name for its status. */
  closed(path: string, code: string): void;
  /** A call was denied, for the audit log's reason. */
  refused(reason: string): void;
  /** A connection was refused, likewise. */
  refusedConnection(reason: string): void;
  /** So many bytes of a job's output were handed on to a client. */
  sent(bytes: number): void;
  /** A client was told that so many bytes of a job's output were not kept. */
  gap(bytes: number): void;
  /** A record of the audit log is not on its way to the disk. */
  unrecorded(): void;
}

/** A certificate that the server shows or takes for a CA, or a list of those that a CA has revoked. */
export interface ServerCertificate {
  readonly use: "worker" | "ca" | "crl";
  /** As in `CN=worker`; of a list its CA's. */
  readonly subject: string;
  readonly notAfter: Date;
}

/** What a server has open now, and the certificates and lists that it uses. */
export interface ServerFigures {
  readonly connections: number;
  readonly certificates: readonly ServerCertificate[];
}

const nothing = (): void => {};

/** Hears nothing. */
export const NO_METER: ServerMeter = {
  opened: nothing,
  closed: nothing,
  refused: nothing,
  refusedConnection: nothing,
  sent: nothing,
  gap: nothing,
  unrecorded: nothing,
};

/** Tells the meter of each record that an audit log does not take. */
export function metered(audit: Audit, meter: ServerMeter): Audit {
  return {
    ...audit,
    write(record) {
      try {
        audit.write(record);
      } catch (error) {
        meter.unrecorded();
        throw error;
      }
    },
  };
}
