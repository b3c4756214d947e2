/** Why somebody gets no more: they have their share, or nothing is left but what is kept for those who have few. */
export interface Full {
  readonly whose: "own" | "all";
  readonly maximum: number;
}

/** What many take of one limit, each their share. */
export interface Shares {
  /** What keeps `who` from one more; undefined when nothing does. */
  full(who: string): Full | undefined;
  take(who: string): void;
  give(who: string): void;
}

/**
 * A limit of `most` at once, of which one has a half at most. The last eighth is for those who have few: the 256th part.
 * So a half stays for others whatever one does, and whatever two do somebody else gets in.
 */
export function shares(most: number): Shares {
  const own = Math.ceil(most / 2);
  const open = most - Math.floor(most / 8);
  const few = Math.ceil(most / 256);
  const taken = sums();
  let all = 0;
  return {
    full(who) {
      const has = taken.of(who);
      if (has >= own) return { whose: "own", maximum: own };
      return all >= (has < few ? most : open) ? { whose: "all", maximum: most } : undefined;
    },
    take(who) {
      taken.add(who, 1);
      all++;
    },
    give(who) {
      taken.add(who, -1);
      all--;
    },
  };
}

/** A sum for each of many. */
export interface Sums {
  of(who: string): number;
  /** Returns the new sum. */
  add(who: string, more: number): number;
}

/** Sums that begin with 0, and take no memory where they are 0. */
export function sums(): Sums {
  const all = new Map<string, number>();
  const of = (who: string): number => all.get(who) ?? 0;
  return {
    of,
    add(who, more) {
      const sum = of(who) + more;
      if (sum > 0) all.set(who, sum);
      else all.delete(who);
      return sum;
    },
  };
}
