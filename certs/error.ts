/**
 * The kind of an error, for a program: `invalid` an option is wrong, `exists` a file would have been overwritten,
 * `unreadable` a file is missing or is not what it should be, `unwritable` a file could not be made,
 * `refused` the request or the CA breaks a rule of signing.
 */
export type CertErrorCode = "invalid" | "exists" | "unreadable" | "unwritable" | "refused";

/** The one error that this folder throws: a code for programs, a message that says what would be right. */
export class CertError extends Error {
  override readonly name = "CertError";
  readonly code: CertErrorCode;

  constructor(code: CertErrorCode, message: string, cause?: unknown) {
    super(message, { cause });
    this.code = code;
  }
}
