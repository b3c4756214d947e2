/** The most characters of a traceparent; that of version 00 has 55, and those of later versions may have more. */
const MAX_LENGTH = 256;
const FORM = /^(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/s;

/** The place of a span in a trace: W3C Trace Context (w3.org/TR/trace-context), 3.2. */
export interface TraceParent {
  /** 32 hexadecimal digits. */
  readonly traceId: string;
  /** 16 hexadecimal digits. */
  readonly spanId: string;
  /** 0 to 255; 1 says that the trace is recorded. */
  readonly flags: number;
}

/**
 * Reads a traceparent; undefined for one that is not valid, which has to be taken for none (3.2.3). What a later version has
 * behind the four parts that are known is left out.
 */
export function readTraceParent(text: string | undefined): TraceParent | undefined {
  if (text === undefined || text.length > MAX_LENGTH) return undefined;
  const [, version, traceId, spanId, flags, more] = FORM.exec(text) ?? [];
  if (traceId === undefined || spanId === undefined || flags === undefined) return undefined;
  if (version === "00" && more !== undefined) return undefined;
  return { traceId, spanId, flags: Number.parseInt(flags, 16) };
}

/** Writes a traceparent of version 00. */
export function writeTraceParent({ traceId, spanId, flags }: TraceParent): string {
  return `00-${traceId}-${spanId}-${flags.toString(16).padStart(2, "0")}`;
}
