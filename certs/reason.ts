import { CertError } from "./error.ts";

/** Why a certificate is revoked (RFC 5280, 5.3.1), with the number of the reason; what could be taken back is left out. */
export const REASONS = {
  unspecified: 0,
  keyCompromise: 1,
  cACompromise: 2,
  affiliationChanged: 3,
  superseded: 4,
  cessationOfOperation: 5,
  privilegeWithdrawn: 9,
  aACompromise: 10,
} as const;
export type Reason = keyof typeof REASONS;

/** Throws CertError `invalid`, naming the right ones, for anything but a reason. */
export function parseReason(text: string): Reason {
  if (isReason(text)) return text;
  const known = Object.keys(REASONS).join(", ");
  throw new CertError("invalid", `--reason: ${JSON.stringify(text)} is not a reason; ${known}`);
}

export function isReason(text: string): text is Reason {
  return Object.hasOwn(REASONS, text);
}
