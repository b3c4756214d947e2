import { FEW } from "./limits.ts";

/** How often each kind was not let through, and since when. */
export interface Rest {
  readonly more: Readonly<Record<string, number>>;
  readonly since: string;
}

/** Lets the first few of each kind through. */
export interface Few extends Disposable {
  /** Counts one more of a kind; true when it is among the first few of this minute. */
  pass(kind: string): boolean;
}

const OTHERS = "others";

/**
 * Lets the first few of each kind through in a minute and counts the rest, so that a client that is refused cannot fill a disk.
 *
 * @param tell is told of the rest once the minute is over; disposing tells at once
 */
export function fewOf(tell: (rest: Rest) => void, { ofKind, ofAll, windowMs }: typeof FEW = FEW): Few {
  const seen = new Map<string, number>();
  const rest = new Map<string, number>();
  let since = new Date();
  let passed = 0;
  let timer: NodeJS.Timeout | undefined;

  function end(): void {
    clearTimeout(timer);
    timer = undefined;
    const counted = Object.fromEntries(rest);
    for (const each of [seen, rest]) each.clear();
    passed = 0;
    if (Object.keys(counted).length > 0) tell({ more: counted, since: since.toISOString() });
  }

  return {
    pass(kind) {
      if (!timer) {
        since = new Date();
        timer = setTimeout(end, windowMs).unref();
      }
      const count = seen.get(kind) ?? 0;
      if (count < ofKind && passed < ofAll) {
        seen.set(kind, count + 1);
        passed++;
        return true;
      }
      // There are as many names as records at most.
      const name = rest.has(kind) || rest.size < ofAll ? kind : OTHERS;
      rest.set(name, (rest.get(name) ?? 0) + 1);
      return false;
    },
    [Symbol.dispose]: end,
  };
}
