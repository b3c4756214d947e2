/*
 * Arguments, variables and paths are bytes to Linux. Here they are text, in which a byte that is not part of UTF-8 is a lone
 * surrogate, U+DC80 to U+DCFF (PEP 383). Bytes of valid UTF-8 cannot be written as surrogates.
 */

const ESCAPED = 0xdc00;
const LONE = /[\udc80-\udcff]/gu;

/** Text that bytesOf() turns into these bytes again. */
export function textOf(bytes: Uint8Array): string {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const text = buffer.toString();
  // Decoding has replaced nothing where there is no U+FFFD. Where there is one, it may be real.
  if (!text.includes("\ufffd")) return text;
  const units = new Uint16Array(buffer.length);
  let size = 0;
  for (let at = 0; at < buffer.length;) {
    const length = characterLength(buffer, at);
    const code = length === 0 ? ESCAPED + (buffer[at] ?? 0) : codePoint(buffer, at, length);
    if (code > 0xffff) units[size++] = 0xd7c0 + (code >> 10);
    units[size++] = code > 0xffff ? 0xdc00 + (code & 0x3ff) : code;
    at += length || 1;
  }
  return Buffer.from(units.buffer, 0, size * 2).toString("utf16le");
}

/** The bytes of a text: UTF-8, and a byte for each lone surrogate. */
export function bytesOf(text: string): Buffer {
  if (text.isWellFormed()) return Buffer.from(text);
  const bytes = Buffer.allocUnsafe(text.length * 3);
  let size = 0;
  for (let at = 0; at < text.length; at++) {
    const code = text.codePointAt(at) ?? 0;
    if (code < 0x80 || isEscaped(code)) bytes[size++] = code & 0xff;
    else if (code < 0x800) {
      bytes[size++] = 0xc0 | (code >> 6);
      bytes[size++] = 0x80 | (code & 0x3f);
    } else {
      if (code < 0x10000) bytes[size++] = 0xe0 | (code >> 12);
      else {
        bytes[size++] = 0xf0 | (code >> 18);
        bytes[size++] = 0x80 | ((code >> 12) & 0x3f);
        at++;
      }
      bytes[size++] = 0x80 | ((code >> 6) & 0x3f);
      bytes[size++] = 0x80 | (code & 0x3f);
    }
  }
  return bytes.subarray(0, size);
}

/** The number of bytes that bytesOf() returns for a text. */
export function byteLengthOf(text: string): number {
  return text.isWellFormed() ? Buffer.byteLength(text) : bytesOf(text).length;
}

/** Whether each lone surrogate of a text stands for a byte. */
export function isBytes(text: string): boolean {
  return text.isWellFormed() || text.replace(LONE, "").isWellFormed();
}

/** A text for people, with `\xNN` for each byte that is not UTF-8. */
export function readable(text: string): string {
  return text.isWellFormed() ? text : text.replace(LONE, (unit) => `\\x${(unit.charCodeAt(0) & 0xff).toString(16)}`);
}

function isEscaped(code: number): boolean {
  return code >= ESCAPED + 0x80 && code <= ESCAPED + 0xff;
}

/** The length of the UTF-8 character at `at`, 1 to 4 bytes; 0 when there is none (Unicode, table 3-7). */
function characterLength(bytes: Uint8Array, at: number): number {
  const first = bytes[at] ?? 0;
  const second = bytes[at + 1] ?? 0;
  if (first < 0x80) return 1;
  const length = first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
  const least = first === 0xe0 ? 0xa0 : first === 0xf0 ? 0x90 : 0x80;
  const most = first === 0xed ? 0x9f : first === 0xf4 ? 0x8f : 0xbf;
  if (length === 0 || second < least || second > most) return 0;
  for (let next = at + 2; next < at + length; next++) if (((bytes[next] ?? 0) & 0xc0) !== 0x80) return 0;
  return length;
}

function codePoint(bytes: Uint8Array, at: number, length: number): number {
  let code = (bytes[at] ?? 0) & (length === 1 ? 0x7f : 0xff >> (length + 1));
  for (let next = at + 1; next < at + length; next++) code = (code << 6) | ((bytes[next] ?? 0) & 0x3f);
  return code;
}
