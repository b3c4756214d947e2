/** Why a client gets no more: it has its share, or all that is left is kept for clients that have few. */
export interface Full {
  readonly whose: "own" | "all";
  readonly maximum: number;
}

/** A limit that many share. */
export interface Shares {
  /** Tells what keeps `who` from taking one more; undefined when nothing does. */
  full(who: string): Full | undefined;
  take(who: string): void;
  give(who: string): void;
  /** Changes the limit. What is taken beyond it stays taken. */
  resize(most: number): void;
}

/**
 * Shares a limit of `most`, of which each has a half at most. The last eighth is for those who have less than a 256th part.
 * So one leaves a half for others, and two at their limits leave room for somebody else.
 */
export function shares(most: number): Shares {
  const taken = sums();
  let limit = most;
  let all = 0;
  return {
    full(who) {
      const [own, few] = [Math.ceil(limit / 2), Math.ceil(limit / 256)];
      const has = taken.of(who);
      if (has >= own) return { whose: "own", maximum: own };
      return all >= (has < few ? limit : limit - Math.floor(limit / 8)) ? { whose: "all", maximum: limit } : undefined;
    },
    resize: (next) => void (limit = next),
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

/** Sums by name. */
export interface Sums {
  of(who: string): number;
  /** Returns the new sum. */
  add(who: string, more: number): number;
}

/** Makes sums that begin with 0. A sum of 0 takes no memory. */
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
