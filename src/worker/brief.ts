import { byteLengthOf } from "./bytes.ts";
import type { Job } from "./job.ts";
import { MAX_ENTRIES } from "./resources.ts";

/** A job of which long fields have their beginning only; `cut` names those. */
export type Brief = Job & { readonly cut?: readonly string[] };

/** Of the texts of each field together. */
const FIELD_BYTES = 4096;

/** A job as a list has it: whole, but for what may be long. */
export function brief(job: Job): Brief {
  const short = {
    command: beginning([job.command])?.[0],
    args: beginning(job.args),
    envNames: beginning(job.envNames),
    cwd: beginning([job.cwd])?.[0],
    warnings: beginning(job.warnings),
    limits: job.limits.size > MAX_ENTRIES ? new Map([...job.limits].slice(0, MAX_ENTRIES)) : undefined,
  };
  const cut = Object.entries(short).filter(([, value]) => value !== undefined);
  return cut.length === 0 ? job : { ...job, ...Object.fromEntries(cut), cut: cut.map(([name]) => name) };
}

/** The texts, the last one cut, as far as they fit; undefined when all do. */
function beginning(texts: readonly string[]): string[] | undefined {
  let left = FIELD_BYTES;
  for (const [i, text] of texts.entries()) {
    const bytes = text.length > left ? Infinity : byteLengthOf(text);
    if (bytes > left) return [...texts.slice(0, i), clipped(text, left)];
    // The end of each takes room, too.
    left -= bytes + 1;
    if (left <= 0 && i < texts.length - 1) return texts.slice(0, i + 1);
  }
  return undefined;
}

/** At most so many bytes of a text, and no half of a character. */
function clipped(text: string, bytes: number): string {
  let kept = text.slice(0, Math.max(0, bytes));
  while (byteLengthOf(kept) > bytes) kept = kept.slice(0, -Math.ceil((byteLengthOf(kept) - bytes) / 3));
  return /[\ud800-\udbff]$/.test(kept) ? kept.slice(0, -1) : kept;
}
