/* What a person reads. Nothing reaches a terminal as text but through `rendered`, which escapes it. */

/** ECMA-48, SGR: what turns each on and off again. */
const STYLES = { green: [32, 39], red: [31, 39], yellow: [33, 39], dim: [2, 22] } as const;
type Style = keyof typeof STYLES;
export type Part = string | { readonly text: string; readonly style: Style };
/** A line without its newline. A newline within it is escaped, since a stranger's name may have one. */
export type Line = string | readonly Part[];

/** Control, format, surrogate and unassigned characters, separators of lines, and what no font shows. */
const UNSEEN = /[\p{C}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/gu;
const SHORT: Readonly<Record<string, string>> = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };

/** A text with escapes, as bash has them in $'…', for what could write on a terminal or hide there; `\xNN` is a byte. */
export function visible(text: string): string {
  return text.replace(UNSEEN, (char) => {
    const code = char.codePointAt(0) ?? 0;
    const hex = code.toString(16);
    // src/os/bytes.ts has a byte that is not UTF-8 as a lone surrogate.
    if (code >= 0xdc80 && code <= 0xdcff) return `\\x${(code & 0xff).toString(16)}`;
    if (code < 0x80) return SHORT[char] ?? `\\x${hex.padStart(2, "0")}`;
    return code > 0xffff ? `\\U${hex.padStart(8, "0")}` : `\\u${hex.padStart(4, "0")}`;
  });
}

/** JSON in which \u stands for the same characters: whoever parses it has the text as it was. */
export function visibleJson(json: string): string {
  return json.replace(UNSEEN, (char) =>
    char === "\n" ? char : char.replace(/[^]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`),
  );
}

/** A line for `stream`, which decides about colours. */
export function rendered(line: Line, stream: object): string {
  const styled = hasColours(stream);
  return (typeof line === "string" ? [line] : line)
    .map((part) => {
      if (typeof part === "string") return visible(part);
      const [on, off] = STYLES[part.style];
      return styled ? `\x1b[${on}m${visible(part.text)}\x1b[${off}m` : visible(part.text);
    })
    .join("");
}

/**
 * Whether a stream takes colours: a terminal as TERM, NO_COLOR and FORCE_COLOR say, anything else where FORCE_COLOR says
 * so.
 */
function hasColours(stream: object): boolean {
  if ("hasColors" in stream && typeof stream.hasColors === "function") return stream.hasColors() === true;
  return /^(|true|[1-3])$/.test(process.env["FORCE_COLOR"] ?? "no");
}

/** Rows with each column as wide as its widest cell, but for the last one. */
export function columns(rows: readonly (readonly Part[])[]): Line[] {
  const widths: number[] = [];
  for (const row of rows)
    for (const [column, cell] of row.entries()) widths[column] = Math.max(widths[column] ?? 0, widthOf(cell));
  return rows.map((row) =>
    row.flatMap((cell, column) =>
      column === row.length - 1 ? [cell] : [cell, padded("", (widths[column] ?? 0) - widthOf(cell) + 2)],
    ),
  );
}

/** A text with as many spaces behind it as it lacks to a width in cells of a terminal. */
export function padded(text: string, width: number): string {
  return text + " ".repeat(Math.max(0, width - widthOf(text)));
}

const WIDE =
  /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}\p{Emoji_Presentation}\u3000-\u303e\uff01-\uff60]/gu;

/** How many cells of a terminal a part takes. */
export function widthOf(part: Part): number {
  const text = visible(typeof part === "string" ? part : part.text).replace(/\p{M}/gu, "");
  return Array.from(text).length + (text.match(WIDE)?.length ?? 0);
}
