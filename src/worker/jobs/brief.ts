import { byteLengthOf } from "../../os/bytes.ts";
import type { Job } from "../model/job.ts";
import { MAX_ENTRIES } from "../model/resources.ts";

/** A job whose long fields are cut to their beginning; `cut` names those fields. */
export type Brief = Job & { readonly cut?: readonly string[] };

/** The most bytes of all texts of one field. */
const FIELD_BYTES = 4096;

/** Shortens the fields of a job that may be long, for lists. */
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

/** As many of the texts as fit, the last one cut; undefined when all of them fit. */
function beginning(texts: readonly string[]): string[] | undefined {
  let left = FIELD_BYTES;
  for (const [i, text] of texts.entries()) {
    const bytes = text.length > left ? Infinity : byteLengthOf(text);
    if (bytes > left) return [...texts.slice(0, i), clipped(text, left)];
    // The end of each text takes a byte, too.
    left -= bytes + 1;
    if (left <= 0 && i < texts.length - 1) return texts.slice(0, i + 1);
  }
  return undefined;
}

/** The beginning of a text, of at most `bytes` bytes and of whole characters. */
function clipped(text: string, bytes: number): string {
  let kept = text.slice(0, Math.max(0, bytes));
  while (byteLengthOf(kept) > bytes) kept = kept.slice(0, -Math.ceil((byteLengthOf(kept) - bytes) / 3));
  return /[\ud800-\udbff]$/.test(kept) ? kept.slice(0, -1) : kept;
}
